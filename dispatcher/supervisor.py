"""The parent of one program: a script that dispatcher.process runs, with nothing but the standard library.

    daemon ──control──▶ supervisor ──fork──▶ program ──▶ its descendants
           ◀──status───

The control pipe first carries the order (program, arguments, folder, environment). Then `T` asks to end the program
gracefully; `A` and a number let it live until so many microseconds of CLOCK_BOOTTIME, or until the next `A` says (no
span of time: that would begin only when a stopped supervisor goes on and reads it); and the pipe's closing, which the
kernel does when the daemon dies in whatever way, demands to end it at once. On the status pipe go `P pid`, `E step
errno` where the program could not be started, and `X status` when it has ended.

- It ends only when every descendant is gone, so that a lock on an inherited file descriptor proves their end.
- Descendants that left the program's process group, or were orphaned, come back to it, their reaper (Linux).
- Should it be killed itself, the kernel kills the program, whose parent it is. After `A` a kernel timer does that
  (fence.py), also where the supervisor is stopped.

Each program pays for its start, so little is imported: signal, contextlib and pathlib would double the time.
"""

from __future__ import annotations

import os
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable

    from dispatcher.fence import Fence
else:
    import _signal as signal  # the same without enums

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CLOCK = time.CLOCK_BOOTTIME if sys.platform == "linux" else time.CLOCK_MONOTONIC
WAKING = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
RECHECK_S = 0.05  # between two rounds of killing; a child forked during one round is found in the next
ALARM_AHEAD_S = 0.1  # all descendants are killed so long before the kernel's timer would end this process alone
RECHECK_MAX_S = 1.0  # what cannot be killed (another user's, or stuck in the kernel) is waited for calmly


def main() -> None:
    """Runs one program to its end and that of its descendants."""
    control, status, daemon = (int(word) for word in sys.argv[1:4])
    kill_after_s = float(sys.argv[4])
    for fd in (control, status):
        os.set_inheritable(fd, False)
    # The control pipe tells of the daemon's death unless a fork of the daemon holds its other end too.
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    # A mask set in the daemon's thread is inherited by all that it starts.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    wake = _wake_on_signals()
    argv, folder, environment = _read_order(control)
    program = _start(argv, folder, environment, status)
    _report(status, f"P {program}")
    _let_go_of_the_programs_pipes()
    _Watch(control, status, wake, program, kill_after_s, daemon).run()


def prctl(option: int, value: int) -> None:
    """Calls prctl(2); does nothing where there is none."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - only Linux pays for it

        ctypes.CDLL(None).prctl(option, int(value), 0, 0, 0)


def _wake_on_signals() -> int:
    """Signals only wake the loop, which looks what has happened: to order the end is up to the daemon."""
    wake, written = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(written, False)
    signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    for signum in WAKING:
        signal.signal(signum, lambda *_: None)
    return wake


def _read_order(control: int) -> tuple[list[bytes], bytes, dict[bytes, bytes]]:
    """Fields divided by NUL, which none can contain, after their length; the second counts the arguments."""
    order = _read_exactly(control, int.from_bytes(_read_exactly(control, 8), "big"))
    folder, count, *fields = order.split(b"\0")
    argv, environment = fields[: int(count)], fields[int(count) :]
    return argv, folder, {name: value for name, _, value in (entry.partition(b"=") for entry in environment)}


def _read_exactly(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = os.read(fd, size - len(data))
        if not more:
            os._exit(0)  # the daemon died before it gave the order
        data += more
    return data


def _start(argv: list[bytes], folder: bytes, environment: dict[bytes, bytes], status: int) -> int:
    supervisor = os.getpid()
    # A signal for the child must wait until it no longer has our handlers, which would swallow it.
    signal.pthread_sigmask(signal.SIG_BLOCK, WAKING)
    program = os.fork()
    if program:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        return program
    step = "chdir"
    try:
        os.setsid()
        for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == supervisor:
            os.chdir(folder)
            step = "exec"
            os.execvpe(argv[0], argv, environment)  # noqa: S606 - no shell is meant
    except OSError as exc:
        _report(status, f"E {step} {exc.errno}")
    finally:
        os._exit(127)


def _let_go_of_the_programs_pipes() -> None:
    """Who reads or writes them must see the end when the program closes its side."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)


def _report(status: int, line: str) -> None:
    try:  # noqa: SIM105
        os.write(status, line.encode() + b"\n")
    except OSError:
        pass  # the daemon is gone, and the control pipe says so as well


class _Watch:
    """Waits for the end of the program, of the daemon, or for the order to end it."""

    def __init__(self, control: int, status: int, wake: int, program: int, kill_after_s: float, daemon: int) -> None:
        self._control = control
        self._status = status
        self._wake = wake
        self._program: int | None = program  # None once it was reaped and its number may be another's
        self._kill_after_s = kill_after_s
        self._daemon = daemon
        self._kill_at: float | None = None
        self._live_until: float | None = None
        self._fence: Fence | None = None
        self._recheck_s = RECHECK_S

    def run(self) -> None:
        """Returns when no descendant is left."""
        poll = select.poll()  # not select(): the numbers are the daemon's and may exceed 1024
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while self._reap():
            if os.getppid() != self._daemon:
                self._kill_at = 0.0
            self._kill_if_due()
            events = dict(poll.poll(self._timeout_ms()))
            if self._wake in events:
                os.read(self._wake, 4096)
            if self._control in events and self._read_control():
                poll.unregister(self._control)

    def _reap(self) -> bool:
        """False once there is no child left: as their reaper, this process then has no descendant either."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._program:
                self._program = None
                if sys.platform != "linux":
                    _try(os.killpg, pid, signal.SIGKILL)  # no /proc to find them in later
                _report(self._status, f"X {os.waitstatus_to_exitcode(status)}")
                # What it leaves behind ends with it, but keeps the time that it was promised.
                if self._kill_at is None:
                    self._kill_at = 0.0

    def _read_control(self) -> bool:
        """True when the daemon has closed its end."""
        word = os.read(self._control, 1)
        if not word:
            self._kill_at = 0.0
            return True
        if word == b"A":
            self._arm(int.from_bytes(os.read(self._control, 8), "big") / 1e6)
            return False
        if self._kill_at is None:
            self._kill_at = time.monotonic() + self._kill_after_s
            self._signal_all(signal.SIGTERM)
            self._signal_all(signal.SIGCONT)  # a stopped process would not notice
        return False

    def _arm(self, deadline: float) -> None:
        if self._fence is None:
            sys.path.append(os.path.dirname(__file__))  # noqa: PTH120
            self._fence = __import__("fence").Fence()
        self._live_until = deadline - ALARM_AHEAD_S
        self._fence.arm(deadline)

    def _timeout_ms(self) -> float | None:
        waits = []
        if self._kill_at is not None:
            waits.append(max(self._kill_at - time.monotonic(), self._recheck_s))
        if self._live_until is not None:
            waits.append(max(self._live_until - time.clock_gettime(CLOCK), 0.0))
        return min(waits) * 1000 if waits else None

    def _kill_if_due(self) -> None:
        if self._live_until is not None and time.clock_gettime(CLOCK) >= self._live_until:
            self._kill_at, self._live_until = 0.0, None
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._signal_all(signal.SIGKILL)
            self._recheck_s = min(self._recheck_s * 1.5, RECHECK_MAX_S)

    def _signal_all(self, signum: int) -> None:
        group = self._program
        if group is not None:
            _try(os.killpg, group, signum)
        for pid, pid_group in descendants(os.getpid()):
            if pid_group != group:
                _try(os.kill, pid, signum)


def _try(kill: Callable[[int, int], None], target: int, signum: int) -> None:
    try:  # noqa: SIM105
        kill(target, signum)
    except OSError:
        pass  # gone already, or another user's


def descendants(root: int) -> list[tuple[int, int]]:
    """All (pid, process group) below `root`, parents first; none where there is no /proc."""
    children: dict[int, list[tuple[int, int]]] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():  # noqa: PTH112, PTH208
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                    # The name of the program stands in parentheses and may itself contain some.
                    _, parent, group = file.read().rpartition(b")")[2].split()[:3]
            except OSError:
                continue  # it has just ended
            children.setdefault(int(parent), []).append((int(name), int(group)))
    found = children.get(root, [])[:]
    for pid, _ in found:
        found.extend(children.get(pid, ()))
    return found


if __name__ == "__main__":
    main()
