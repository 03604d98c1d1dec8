"""The kernel timer that ends a process which can no longer end itself."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.timing import quickest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the timer is Linux's")

ROOT = Path(__file__).parents[2]
PRELUDE = """
import ctypes, os, signal, sys, time
from dispatcher.fence import Fence, boottime
fence = Fence()
"""


def start(body: str) -> subprocess.Popen[str]:
    """A process that runs `body` with a fence of its own; it prints a line when the test may go on."""
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(body)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_it_kills_a_process_whose_interpreter_hangs_in_c_with_the_gil_held() -> None:
    with start(
        """
        fence.arm(boottime() + 0.2)
        print(flush=True)
        ctypes.PyDLL(None).sleep(30)
        """
    ) as process:
        assert process.wait(5) == -signal.SIGKILL


def test_it_kills_a_stopped_process_without_waiting_for_it_to_be_continued() -> None:
    with start(
        """
        fence.arm(boottime() + 0.2)
        os.kill(os.getpid(), signal.SIGSTOP)
        print("continued", flush=True)
        """
    ) as process:
        assert process.wait(5) == -signal.SIGKILL
        assert line(process) == ""


def test_it_kills_a_process_that_catches_and_blocks_every_signal() -> None:
    with start(
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
        fence.arm(boottime() + 0.2)
        time.sleep(30)
        """
    ) as process:
        assert process.wait(5) == -signal.SIGKILL


def test_a_deadline_in_the_past_strikes_at_once() -> None:
    with start(
        """
        fence.arm(boottime() - 100)
        time.sleep(30)
        """
    ) as process:
        assert process.wait(5) == -signal.SIGKILL


def test_arming_anew_puts_it_off() -> None:
    with start(
        """
        for _ in range(20):
            fence.arm(boottime() + 0.3)
            time.sleep(0.03)
        print("alive", flush=True)
        fence.arm(boottime() + 0.1)
        time.sleep(30)
        """
    ) as process:
        assert line(process) == "alive"
        assert process.wait(5) == -signal.SIGKILL


def test_disarmed_it_does_not_strike() -> None:
    with start(
        """
        fence.arm(boottime() + 0.1)
        fence.disarm()
        assert fence.deadline is None
        time.sleep(0.3)
        print("alive", flush=True)
        """
    ) as process:
        assert line(process) == "alive"
        assert process.wait(5) == 0


def test_sealed_it_cannot_be_put_off_any_more() -> None:
    """The process has given its jobs away: no heartbeat of another thread may let it live on."""
    with start(
        """
        fence.seal(boottime() + 0.2)
        while True:
            fence.arm(boottime() + 10)
            fence.disarm()
            time.sleep(0.01)
        """
    ) as process:
        assert process.wait(5) == -signal.SIGKILL


def test_a_forked_child_does_not_inherit_it() -> None:
    with start(
        """
        fence.arm(boottime() + 0.2)
        if os.fork() == 0:
            time.sleep(0.5)
            os.write(1, b"child lives\\n")
            os._exit(0)
        time.sleep(30)
        """
    ) as process:
        assert line(process) == "child lives"
        assert process.wait(5) == -signal.SIGKILL


def test_a_program_started_from_it_does_not_inherit_it() -> None:
    with start(
        """
        fence.arm(boottime() + 0.2)
        os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(0.5); print('lives')"])
        """
    ) as process:
        assert line(process) == "lives"
        assert process.wait(5) == 0


def test_it_strikes_on_time_neither_early_nor_much_later() -> None:
    def lived_s() -> float:
        with start(
            """
            now = boottime()
            fence.arm(now + 0.5)
            print(now, flush=True)
            time.sleep(300)
            """
        ) as process:
            armed = float(line(process))
            process.wait(60)
            lived = time.clock_gettime(time.CLOCK_BOOTTIME) - armed
        assert lived >= 0.5
        return lived

    assert quickest(lived_s, within_s=1.0) < 1.0


def test_the_timer_runs_on_while_the_machine_sleeps() -> None:
    """An owner's time must not stand still while others count."""
    with start(
        """
        fence.arm(boottime() + 60)
        print(open("/proc/self/timers").read().replace("\\n", " "), flush=True)
        """
    ) as process:
        assert "ClockID: 7" in line(process), "CLOCK_BOOTTIME"


def test_trust_is_counted_on_the_clock_that_runs_on_while_the_machine_sleeps() -> None:
    """A namespace in which the machine has slept for a day, as its clocks tell it."""
    program = "from dispatcher.fence import boottime; import time; print(boottime() - time.monotonic())"
    command = ["unshare", "--user", "--map-root-user", "--time", "--boottime", "86400", "--monotonic", "0"]
    if subprocess.run(["sh", "-c", '"$@" true', "sh", *command], check=False, capture_output=True).returncode:
        pytest.skip("unshare makes no namespace for the time here")
    slept = subprocess.run([*command, sys.executable, "-c", program], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    assert float(slept.stdout) > 86000
