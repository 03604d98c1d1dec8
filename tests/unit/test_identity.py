"""What proves that a process of this host is gone, and what does not."""

import ast
import dataclasses
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher import identity
from dispatcher.identity import Identity, kill, proven_dead
from dispatcher.queries.replicas import Process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")

ROOT = Path(__file__).parents[2]
REPLICA = """
import pathlib, subprocess, sys
from dispatcher.identity import Identity
identity = Identity(pathlib.Path(sys.argv[1]))
child = None
if sys.argv[2] == "child":
    program = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    child = subprocess.Popen(program, stdin=0, pass_fds=(identity.lock_fd,))
p = identity.process
print(repr((p.host, p.pid, p.boot_id, p.pid_namespace, p.start, p.lock_file, child and child.pid)), flush=True)
sys.stdin.read()
"""


@dataclasses.dataclass
class Other:
    """Another replica's process, as it registered itself."""

    popen: subprocess.Popen[str]
    process: Process
    child: int | None = None

    def die(self) -> None:
        self.popen.kill()
        self.popen.wait()


def start(folder: Path, *, child: bool = False) -> Other:
    popen = subprocess.Popen(
        [sys.executable, "-c", REPLICA, str(folder), "child" if child else ""],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert popen.stdout is not None

    host, pid, boot_id, pid_namespace, begun, lock_file, child_pid = ast.literal_eval(popen.stdout.readline())
    return Other(popen, Process(host, pid, boot_id, pid_namespace, begun, lock_file), child_pid)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Other]:
    it = start(tmp_path)
    yield it
    it.popen.kill()
    it.popen.communicate()


def test_a_living_process_is_not_dead(other: Other) -> None:
    assert not proven_dead(other.process)


def test_a_process_that_is_no_more_is_dead(other: Other) -> None:
    other.die()
    assert proven_dead(other.process)


def test_a_stopped_process_is_not_dead(other: Other) -> None:
    other.popen.send_signal(signal.SIGSTOP)
    assert not proven_dead(other.process)


def test_a_zombie_is_dead(other: Other) -> None:
    """Its number stays taken until its parent has asked after it; where process 1 reaps late that takes a while."""
    other.popen.kill()
    os.waitid(os.P_PID, other.popen.pid, os.WEXITED | os.WNOWAIT)
    assert identity._is_zombie(other.process.pid)
    assert proven_dead(other.process)


def test_a_number_given_to_another_process_is_dead(other: Other) -> None:
    """Same number, started at another time: somebody else lives there now."""
    other.die()
    reused = dataclasses.replace(other.process, pid=os.getpid())
    assert proven_dead(reused)


def test_a_reused_number_proves_nothing_while_the_lock_file_is_held(other: Other) -> None:
    assert not proven_dead(dataclasses.replace(other.process, pid=os.getpid()))


def test_being_refused_a_look_is_no_proof(other: Other, monkeypatch: pytest.MonkeyPatch) -> None:
    """ProtectProc=invisible hides /proc of other users while kill says EPERM."""

    def refuse(_pid: int, _signal: int) -> None:
        raise PermissionError

    other.die()
    monkeypatch.setattr(os, "kill", refuse)
    assert not proven_dead(other.process)


def test_a_hidden_proc_is_no_proof(other: Other, monkeypatch: pytest.MonkeyPatch) -> None:
    living = dataclasses.replace(other.process, pid=os.getpid(), start="0")
    other.die()
    monkeypatch.setattr(identity, "_stat_fields", lambda _pid: None)
    assert not proven_dead(living)


@pytest.mark.parametrize(
    "elsewhere",
    [{"boot_id": "another"}, {"pid_namespace": "pid:[1]"}, {"boot_id": None}, {"pid_namespace": None}, {"start": None}],
)
def test_another_boot_or_pid_namespace_is_no_proof(other: Other, elsewhere: dict[str, str | None]) -> None:
    """Containers share the boot id, and their numbers mean nothing here."""
    other.die()
    assert not proven_dead(dataclasses.replace(other.process, **elsewhere))  # type: ignore[arg-type]


def test_a_lock_file_that_is_not_there_or_not_the_same_is_no_proof(other: Other, tmp_path: Path) -> None:
    other.die()
    inode, _, path = (other.process.lock_file or "").partition(":")
    assert not proven_dead(dataclasses.replace(other.process, lock_file=None))
    assert not proven_dead(dataclasses.replace(other.process, lock_file=f"{inode}:{tmp_path}/gone"))
    assert not proven_dead(dataclasses.replace(other.process, lock_file=f"1:{path}"))
    assert proven_dead(other.process)


def test_a_surviving_child_is_no_proof_until_it_is_gone_as_well(tmp_path: Path) -> None:
    other = start(tmp_path, child=True)
    assert other.child is not None
    child = os.pidfd_open(other.child)
    try:
        other.die()
        assert not proven_dead(other.process), "what it started still works for its jobs"
        signal.pidfd_send_signal(child, signal.SIGKILL)

        select.select([child], [], [], 5)
        assert proven_dead(other.process)
    finally:
        os.close(child)
        other.popen.communicate()


def test_a_frozen_process_is_killed(other: Other) -> None:
    other.popen.send_signal(signal.SIGSTOP)
    assert kill(other.process)
    assert other.popen.wait(5) == -signal.SIGKILL
    assert not kill(other.process)
    assert proven_dead(other.process)


def test_what_a_dead_process_has_left_is_killed(tmp_path: Path) -> None:
    """Whoever was to end it is frozen or gone: its job may not run elsewhere while it does here."""
    other = start(tmp_path, child=True)
    assert other.child is not None
    child = os.pidfd_open(other.child)
    try:
        other.die()
        assert kill(other.process)
        assert select.select([child], [], [], 5)[0], "it is killed"
        assert not kill(other.process)
        assert proven_dead(other.process)
    finally:
        os.close(child)
        other.popen.communicate()


def test_whoever_looks_at_the_lock_of_a_dead_process_is_not_killed(other: Other) -> None:
    """Another replica takes the lock for an instant to see whether it is free, in its own name."""
    other.die()
    _, _, path = (other.process.lock_file or "").partition(":")
    program = (
        f"import fcntl, sys; f = open({path!r}); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as looking:
        assert looking.stdout is not None
        looking.stdout.readline()
        assert not proven_dead(other.process), "else this tests nothing"
        assert not kill(other.process)
        assert looking.poll() is None
        looking.kill()


def test_a_process_with_a_reused_number_is_not_killed(other: Other) -> None:
    assert not kill(dataclasses.replace(other.process, start="0"))
    assert not kill(dataclasses.replace(other.process, boot_id="another"))
    assert not kill(dataclasses.replace(other.process, pid_namespace="pid:[1]"))
    assert other.popen.poll() is None


def test_a_zombie_is_not_killed_again(other: Other) -> None:
    other.popen.kill()
    os.waitid(os.P_PID, other.popen.pid, os.WEXITED | os.WNOWAIT)
    assert not kill(other.process), "it would be waited for in vain"


def test_looking_at_a_lock_does_not_keep_it(other: Other) -> None:
    other.die()
    assert proven_dead(other.process)
    assert proven_dead(other.process)


def test_closing_removes_the_lock_file(tmp_path: Path) -> None:
    own = Identity(tmp_path)
    assert [path.name.startswith("replica-") for path in tmp_path.iterdir()] == [True]
    own.close()
    assert list(tmp_path.iterdir()) == []
