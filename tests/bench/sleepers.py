"""What threads alone could do: as many that sleep for a millisecond again and again, without any queue."""

from __future__ import annotations

import subprocess
import sys
import threading
import time


def sleeps_per_second(threads: int, count: int) -> float:
    """Sleeps of 1 ms a second by this many threads, in a process of its own as a replica is."""
    command = [sys.executable, "-m", __name__, str(threads), str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def _main(threads: int, count: int) -> None:
    each = max(1, count // threads)

    def work() -> None:
        for _ in range(each):
            time.sleep(0.001)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    began = time.monotonic()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(each * threads / (time.monotonic() - began))


if __name__ == "__main__":
    sys.setswitchinterval(0.0005)  # as a replica's
    _main(int(sys.argv[1]), int(sys.argv[2]))
