"""Programs under supervision: what must die dies, what must be inherited is, nothing hangs."""

import fcntl
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dispatcher import process
from dispatcher.context import Context, Interrupted
from dispatcher.fence import boottime
from dispatcher.job import CancelReason, Job
from dispatcher.process import ProgramResult, run_program
from dispatcher.supervised import Supervised, SupervisorDied, order_for

# An orphan in a session of its own that ignores SIGTERM, holds the output open and tells its number.
STUBBORN = 'setsid sh -c \'trap "" TERM; echo $$ > "$0"; while :; do sleep 0.1; done\' "$1" & '


@pytest.fixture
def ctx() -> Context:
    return new_context()


def new_context() -> Context:
    job = Job(1, "t", None, {}, 0, 1, 0, datetime.now(UTC))
    return Context(job, timeout_s=None, runtime=None)  # type: ignore[arg-type]


def shell(script: str, *args: str | Path, ctx: Context, **options: object) -> ProgramResult:
    return run_program(["/bin/sh", "-c", script, "sh", *map(str, args)], ctx=ctx, **options)  # type: ignore[arg-type]


def eventually(holds: Callable[[], object], within_s: float = 30.0) -> float:
    """Seconds until something in another process holds; there is no event to wait for."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < within_s
        time.sleep(0.002)
    return time.monotonic() - started


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(b")")[2].split()[0] != b"Z"


def pid_in(file: Path) -> int:
    eventually(lambda: file.exists() and file.read_text().endswith("\n"))
    return int(file.read_text())


def test_output_status_and_arguments_come_through_unchanged(ctx: Context) -> None:
    odd = ["; rm -rf /", "$(id)", "a\nb", "", "*", "é"]
    ended = run_program(["/usr/bin/printf", "<%s>", *odd], ctx=ctx)
    assert ended.stdout.decode() == "".join(f"<{arg}>" for arg in odd)
    assert (ended.exit_status, ended.signal, ended.stdout_truncated) == (0, None, False)
    ended = shell("echo oops >&2; exit 7", ctx=ctx)
    assert (ended.exit_status, ended.stderr) == (7, b"oops\n")


def test_death_by_signal_is_told_from_an_exit_status(ctx: Context) -> None:
    ended = shell("kill -SEGV $$", ctx=ctx)
    assert (ended.exit_status, ended.signal) == (None, signal.SIGSEGV)


def test_standard_input_larger_than_a_pipe_is_fed_while_output_is_read(ctx: Context) -> None:
    data = os.urandom(1 << 20)
    assert run_program(["/bin/cat"], ctx=ctx, stdin=data, tail_bytes=2 << 20).stdout == data


def test_program_that_does_not_read_its_input_ends_all_the_same(ctx: Context) -> None:
    assert run_program(["/bin/true"], ctx=ctx, stdin=b"x" * (1 << 20)).exit_status == 0


def test_without_input_standard_input_is_at_its_end(ctx: Context) -> None:
    assert run_program(["/bin/cat"], ctx=ctx).stdout == b""


def test_nul_is_refused_instead_of_cutting_an_argument_short(ctx: Context) -> None:
    with pytest.raises(ValueError, match="NUL"):
        run_program(["/bin/echo", "a\0b"], ctx=ctx)


@pytest.mark.parametrize(
    ("argv", "cwd", "error", "named"),
    [
        (["/no/such/program"], None, FileNotFoundError, "/no/such/program"),
        (["/etc/passwd"], None, PermissionError, "/etc/passwd"),
        (["/bin/true"], "/no/such/folder", FileNotFoundError, "/no/such/folder"),
    ],
)
def test_what_cannot_be_started_is_an_error_that_names_it(
    ctx: Context, argv: list[str], cwd: str | None, error: type[OSError], named: str
) -> None:
    with pytest.raises(error) as caught:
        run_program(argv, ctx=ctx, cwd=cwd)
    assert caught.value.filename == named


def test_secrets_of_the_daemon_do_not_reach_the_program(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPATCHER_DSN", "postgresql://u:secret@h/d")
    # Nor the supervisor's: the program's parent, which runs as the same user.
    ended = shell('env; tr "\\0" "\\n" < /proc/$PPID/environ; tr "\\0" " " < /proc/$PPID/cmdline', ctx=ctx)
    assert b"secret" not in ended.stdout
    assert set(shell("env", ctx=ctx).stdout.split(b"\n")) - {b"PWD=/", b"_=/usr/bin/env", b""} == {
        b"PATH=" + process._PATH.encode(),
        b"HOME=/",
        b"LANG=C.UTF-8",
    }


def test_gigabytes_of_output_leave_a_bounded_tail(ctx: Context) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ended = shell("head -c 1000000000 /dev/zero; echo end; echo err >&2", ctx=ctx, tail_bytes=1000)
    assert ended.stdout_truncated
    assert not ended.stderr_truncated
    assert len(ended.stdout) == 1000
    assert ended.stdout.endswith(b"end\n")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


def test_lines_are_told_as_they_come_and_not_at_the_end(ctx: Context, tmp_path: Path) -> None:
    """The program waits for an answer to its line: told late, it would wait for ever."""
    heard: list[tuple[str, bytes]] = []
    fifo = tmp_path / "answer"
    os.mkfifo(fifo)

    def hear(stream: str, line: bytes) -> None:
        heard.append((stream, line))
        if line == b"20%":
            fifo.write_text("go on")

    script = r'printf "10%%\r20%%\r"; cat "$1" >&2; printf "\n\nlast"'
    ended = shell(script, fifo, ctx=ctx, on_line=hear)
    # What the two streams say at the end has no order between them.
    assert heard[:2] == [("stdout", b"10%"), ("stdout", b"20%")]
    assert sorted(heard[2:]) == [("stderr", b"go on"), ("stdout", b"last")]
    assert ended.stdout == b"10%\r20%\r\n\nlast"


def test_line_without_an_end_is_cut_instead_of_kept(ctx: Context) -> None:
    heard: list[bytes] = []
    shell("head -c 5000000 /dev/zero; echo; echo next", ctx=ctx, on_line=lambda _, line: heard.append(line))
    assert [len(line) for line in heard] == [8192, 4]
    lines = process._Lines(heard.append)
    for _ in range(100):
        lines.add(b"x" * 65536)
        assert len(lines._begun) == 8192


def test_error_of_who_hears_the_lines_kills_the_program(ctx: Context, tmp_path: Path) -> None:
    def hear(stream: str, line: bytes) -> None:
        raise LookupError

    file = tmp_path / "pid"
    with pytest.raises(LookupError):
        shell('echo $$ > "$1"; echo line; exec sleep 100', file, ctx=ctx, on_line=hear)
    assert not alive(pid_in(file))


def test_time_of_its_own_ends_a_program_that_ignores_sigterm(ctx: Context, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    script = "trap '' TERM; " + STUBBORN + "while :; do sleep 0.1; done"
    ended = shell(script, file, ctx=ctx, timeout_s=0.5, kill_after_s=0.2)
    assert ended.timed_out
    assert ended.signal == signal.SIGKILL
    assert not alive(pid_in(file))
    assert not shell("exit 0", ctx=ctx, timeout_s=60).timed_out


def test_without_a_context_a_canceled_job_can_still_clean_up(tmp_path: Path) -> None:
    assert run_program(["/usr/bin/touch", str(tmp_path / "cleaned")], ctx=None).exit_status == 0
    assert (tmp_path / "cleaned").exists()


def test_grandchild_that_keeps_the_output_open_is_killed_when_the_program_ends(ctx: Context, tmp_path: Path) -> None:
    ended = shell(STUBBORN + 'until [ -s "$1" ]; do sleep 0.01; done; echo bye', tmp_path / "pid", ctx=ctx)
    assert ended.stdout == b"bye\n"
    assert not alive(pid_in(tmp_path / "pid"))  # which ends by itself never


def cancel_when(ready: Callable[[], object], ctx: Context, reason: CancelReason) -> threading.Thread:
    def wait_and_cancel() -> None:
        ready()
        ctx.cancel(reason)

    thread = threading.Thread(target=wait_and_cancel)
    thread.start()
    return thread


def test_cancel_kills_what_ignores_sigterm_in_whatever_session(ctx: Context, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    thread = cancel_when(lambda: pid_in(file), ctx, CancelReason.REQUESTED)
    with pytest.raises(Interrupted) as caught:
        shell("trap '' TERM; " + STUBBORN + "while :; do sleep 0.1; done", file, ctx=ctx, kill_after_s=0.3)
    thread.join()
    assert caught.value.reason is CancelReason.REQUESTED
    assert not alive(pid_in(file))


def test_cancel_lets_a_program_clean_up_first(ctx: Context, tmp_path: Path) -> None:
    ready, cleaned = tmp_path / "ready", tmp_path / "cleaned"
    script = 'trap \'echo 1 > "$2"; exit\' TERM; echo 1 > "$1"; while :; do sleep 0.05; done'
    thread = cancel_when(lambda: pid_in(ready), ctx, CancelReason.TIMEOUT)
    started = time.monotonic()
    with pytest.raises(Interrupted):
        shell(script, ready, cleaned, ctx=ctx, kill_after_s=30)
    thread.join()
    assert cleaned.exists()
    assert time.monotonic() - started < 30


def test_stopped_program_hears_the_cancel(ctx: Context, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    thread = cancel_when(lambda: pid_in(file), ctx, CancelReason.SHUTDOWN)
    started = time.monotonic()
    with pytest.raises(Interrupted):
        shell('echo $$ > "$1"; kill -STOP $$; sleep 100', file, ctx=ctx, kill_after_s=30)
    thread.join()
    assert time.monotonic() - started < 30


def test_job_that_is_canceled_already_starts_nothing(ctx: Context, tmp_path: Path) -> None:
    ctx.cancel(CancelReason.REQUESTED)
    with pytest.raises(Interrupted):
        shell('echo 1 > "$1"', tmp_path / "ran", ctx=ctx)
    assert not (tmp_path / "ran").exists()


def test_cancel_after_the_end_writes_to_nobodys_file(ctx: Context, tmp_path: Path) -> None:
    assert run_program(["/bin/true"], ctx=ctx).exit_status == 0
    # These take the numbers of the pipes that were closed.
    files = [(tmp_path / str(number)).open("wb") for number in range(20)]
    ctx.cancel(CancelReason.REQUESTED)
    for file in files:
        file.close()
    assert all((tmp_path / str(number)).read_bytes() == b"" for number in range(20))


def test_signals_blocked_or_ignored_in_the_daemon_are_not_so_in_the_program() -> None:
    """A worker's blocked mask, inherited, makes a program deaf to SIGTERM."""
    states: list[bytes] = []

    def worker() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})
        states.append(shell("grep -E 'Sig(Blk|Ign)' /proc/self/status", ctx=new_context()).stdout)

    ignored = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        thread = threading.Thread(target=worker)
        thread.start()
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, ignored)
    own = 0b11 << 31  # signals 32 and 33 are the C library's, which lets nobody reset them
    assert [int(line.split()[1], 16) & ~own for line in states[0].splitlines()] == [0, 0]


def test_no_file_descriptor_is_inherited_but_those_that_should_be(ctx: Context, tmp_path: Path) -> None:
    leaked = os.open(tmp_path, os.O_RDONLY)
    kept = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(leaked, True)
    try:
        listing = shell("ls -l /proc/self/fd", ctx=ctx, keep_open=[kept]).stdout.decode()
    finally:
        os.close(leaked)
        os.close(kept)
    numbers = {int(line.split(" -> ")[0].split()[-1]) for line in listing.splitlines() if " -> " in line}
    assert numbers - {kept} <= {0, 1, 2, 3}  # ls has opened one itself
    assert str(kept) in {str(number) for number in numbers}


@pytest.fixture
def lock_file(tmp_path: Path) -> Path:
    return tmp_path / "lock"


DAEMON = """
import fcntl, os, sys, threading
from datetime import datetime
from dispatcher import process, supervised
from dispatcher.context import Context
from dispatcher.job import Job
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX)
supervised.inherit(lock)
ctx = Context(Job(1, "t", None, {}, 0, 1, 0, datetime.now()), timeout_s=None, runtime=None)
run = lambda: process.run_program(["/bin/sh", "-c", *sys.argv[2:]], ctx=ctx)
thread = threading.Thread(target=run)
thread.start()
if os.environ.get("FORKED"):
    # A fork of the daemon that lives on holds the other end of the control pipe.
    while not os.path.exists(os.environ["FORKED"]):
        pass
    if os.fork() == 0:
        os.close(lock)
        os.execvp("sleep", ["sleep", "100"]) if os.environ.get("EXEC") else threading.Event().wait(100)
thread.join()
"""


def is_free(lock_file: Path) -> bool:
    with lock_file.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def start_daemon(lock_file: Path, script: str, *args: Path, **env: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", DAEMON, str(lock_file), script, "sh", *map(str, args)]
    return subprocess.Popen(command, env=os.environ | env)


def test_programs_of_a_killed_daemon_die_at_once_and_free_its_lock(lock_file: Path, tmp_path: Path) -> None:
    orphan, main = tmp_path / "orphan", tmp_path / "main"
    script = "trap '' TERM; (" + STUBBORN + ') ; echo $$ > "$2"; while :; do sleep 0.1; done'
    daemon = start_daemon(lock_file, script, orphan, main)
    pids = [pid_in(orphan), pid_in(main)]
    assert not is_free(lock_file)
    daemon.kill()
    daemon.wait()
    eventually(lambda: is_free(lock_file))  # they end by themselves never
    # A free lock proves that they are gone, not the other way round.
    assert not any(map(alive, pids))


def test_lock_is_held_while_only_descendants_of_a_dead_daemon_live(lock_file: Path, tmp_path: Path) -> None:
    """Even of those that close every file: their supervisor keeps the lock until they are gone."""
    file = tmp_path / "pid"
    daemon = start_daemon(lock_file, 'exec 3>&- 4>&- 5>&-; echo $$ > "$1"; exec sleep 100', file)
    program = pid_in(file)
    supervisor = int(Path(f"/proc/{program}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(supervisor, signal.SIGSTOP)
    daemon.kill()
    daemon.wait()
    assert alive(program)
    assert not is_free(lock_file)
    os.kill(supervisor, signal.SIGCONT)
    eventually(lambda: is_free(lock_file))
    assert not alive(program)


def test_daemons_death_is_noticed_although_a_fork_holds_the_pipe(lock_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    daemon = start_daemon(lock_file, 'echo $$ > "$1"; exec sleep 100', file, FORKED=str(file))
    program = pid_in(file)
    forks: list[int] = []

    def forked() -> bool:
        forks[:] = [
            pid for pid in children(daemon.pid) if b"-c" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        ]
        return bool(forks)

    eventually(forked)
    try:
        daemon.kill()
        daemon.wait()
        eventually(lambda: not alive(program))
    finally:
        os.kill(forks[0], signal.SIGKILL)


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_bytes().rpartition(b")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except OSError:
            continue
    return found


def test_killed_supervisor_takes_the_program_with_it(ctx: Context, tmp_path: Path) -> None:
    own, grandchild = tmp_path / "own", tmp_path / "grandchild"
    script = 'echo $$ > "$1"; sh -c \'echo $$ > "$0"; exec sleep 100\' "$2"'
    raised: list[BaseException] = []

    def run() -> None:
        with pytest.raises(SupervisorDied) as caught:
            shell(script, own, grandchild, ctx=ctx)
        raised.append(caught.value)

    thread = threading.Thread(target=run)
    thread.start()
    pids = [pid_in(own), pid_in(grandchild)]
    os.kill(int(Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL)
    thread.join()
    assert raised
    eventually(lambda: not any(map(alive, pids)))


def test_many_programs_at_once_leave_no_file_open() -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    results: list[int | None] = []

    def work() -> None:
        results.extend(run_program(["/bin/true"], ctx=new_context()).exit_status for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [0] * 40
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_an_armed_supervisor_that_is_armed_anew_lets_live(tmp_path: Path) -> None:
    own = tmp_path / "own"
    order = order_for(["/bin/sh", "-c", 'echo $$ > "$0"; exec sleep 100', str(own)], "/", {"PATH": "/bin"})
    with Supervised(order) as program:
        program.start()
        began = time.monotonic()
        while time.monotonic() - began < 1.2:
            program.arm(boottime() + 0.5)
            time.sleep(0.1)  # as a heartbeat; what is looked for is that nothing happens
        assert alive(pid_in(own))


@pytest.mark.parametrize("frozen", [False, True])
def test_an_armed_supervisor_that_hears_no_more_ends_everything_in_time(tmp_path: Path, frozen: bool) -> None:
    """By itself, or where it is stopped by the kernel's timer and the death signal of its program."""
    own, grandchild = tmp_path / "own", tmp_path / "grandchild"
    script = 'echo $$ > "$1"; setsid sh -c \'echo $$ > "$0"; exec sleep 100\' "$2" & wait'
    order = order_for(["/bin/sh", "-c", script, "sh", str(own), str(grandchild)], "/", {"PATH": "/bin"})
    with Supervised(order) as program:
        program.start()
        pids = [pid_in(own), pid_in(grandchild)]
        supervisor = int(Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1])
        program.arm(boottime() + 0.5)
        armed = time.monotonic()
        if frozen:
            eventually(lambda: Path(f"/proc/{supervisor}/timers").read_text())
            os.kill(supervisor, signal.SIGSTOP)
        eventually(lambda: not alive(pids[0]))
        assert 0.3 < time.monotonic() - armed < 5.0
        if frozen:  # what had left the program's session is nobody's then
            os.kill(pids[1], signal.SIGKILL)
        else:
            eventually(lambda: not alive(pids[1]))


def test_time_that_was_granted_to_a_stopped_supervisor_does_not_begin_when_it_goes_on() -> None:
    """Its owner is gone by then, and others count from when it was granted."""
    with Supervised(order_for(["sleep", "300"], "/", {"PATH": os.environ["PATH"]})) as program:
        program.start()
        program.arm(boottime() + 60.0)
        supervisor = program._process.pid
        eventually(lambda: children(supervisor))
        [pid] = children(supervisor)
        os.kill(supervisor, signal.SIGSTOP)
        program.arm(boottime() + 4.0)
        time.sleep(4.0)  # nothing can be waited for while it is stopped
        os.kill(supervisor, signal.SIGCONT)
        assert eventually(lambda: not alive(pid)) < 2.5
