"""Programs, supervised: none of them, and nothing they start, outlives its job or this process."""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING

from dispatcher.supervised import READ_BYTES, Supervised, order_for

if TYPE_CHECKING:
    from dispatcher.context import Context

_DRAIN_S = 1.0  # for a pipe that somebody holds who is no descendant, after all descendants are gone
_MAX_LINE_BYTES = 8192  # of a line that is told to on_line(): a stream without line breaks must not fill the memory
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """How a program ended: by `exit_status`, or else by `signal`; and the ends of what it wrote."""

    exit_status: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    stdout_truncated: bool
    stderr_truncated: bool
    duration_s: float
    timed_out: bool = False
    """It was ended because `timeout_s` had passed."""


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """PATH, HOME, LANG and `extra`: nothing of this process's own environment, which may hold passwords."""
    return {"PATH": _PATH, "HOME": "/", "LANG": "C.UTF-8", **(extra or {})}


def run_program(
    argv: Sequence[str],
    *,
    ctx: Context | None,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    tail_bytes: int = 64_000,
    timeout_s: float | None = None,
    kill_after_s: float = 5.0,
    keep_open: Sequence[int] = (),
    on_line: Callable[[str, bytes], None] | None = None,
) -> ProgramResult:
    """Runs a program, never through a shell, and returns when it and all its descendants are gone.

    What it leaves running when it ends is killed. When the job is asked to stop, the program and all its
    descendants get SIGTERM and, after `kill_after_s`, SIGKILL; then the job ends here as interrupted. If this
    process dies they are killed at once. `env` is clean_environment() unless given. Of each stream the last
    `tail_bytes` are kept. After `timeout_s` it is ended in the same way, and the result says `timed_out`.
    `on_line("stdout" | "stderr", line)` hears each line as it comes, without its end (a line feed or carriage return)
    and cut to 8 KiB. With None for `ctx` nothing but time ends it: for cleaning up in a job that was canceled.
    Raises OSError where the program cannot be started.
    """
    if ctx is not None:
        ctx.raise_if_canceled()
    order = order_for(argv, cwd or "/", clean_environment() if env is None else env)
    started = time.monotonic()
    with _Piped(
        order, stdin=stdin, tail_bytes=tail_bytes, kill_after_s=kill_after_s, keep_open=keep_open, on_line=on_line
    ) as program:
        if ctx is not None:
            ctx.on_cancel(program.terminate)
        program.pump(None if timeout_s is None else started + timeout_s)
    if ctx is not None and program.terminated_early:
        ctx.raise_if_canceled()
    code = program.exit_code(argv[0], cwd)
    return ProgramResult(
        exit_status=code if code >= 0 else None,
        signal=-code if code < 0 else None,
        stdout=program.stdout.data(),
        stderr=program.stderr.data(),
        stdout_truncated=program.stdout.truncated,
        stderr_truncated=program.stderr.truncated,
        duration_s=time.monotonic() - started,
        timed_out=program.timed_out,
    )


class _Tail:
    """The last `limit` bytes of a stream, in at most twice the memory."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = bytearray()
        self.truncated = False

    def add(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > 2 * self._limit + READ_BYTES:
            self._cut()

    def data(self) -> bytes:
        self._cut()
        return bytes(self._data)

    def _cut(self) -> None:
        excess = len(self._data) - self._limit
        if excess > 0:
            del self._data[:excess]
            self.truncated = True


class _Lines:
    """Tells the lines of a stream as they come."""

    def __init__(self, tell: Callable[[bytes], None]) -> None:
        self._tell = tell
        self._begun = b""

    def add(self, data: bytes) -> None:
        """The next bytes; none at the end of the stream."""
        *lines, rest = (self._begun + data).replace(b"\r", b"\n").split(b"\n")
        self._begun = rest[:_MAX_LINE_BYTES]
        if not data:
            lines.append(rest)
        for line in filter(None, lines):
            self._tell(line[:_MAX_LINE_BYTES])


class _Piped(Supervised):
    """A program whose input and output go through this process."""

    def __init__(
        self,
        order: bytes,
        *,
        stdin: bytes | None,
        tail_bytes: int,
        kill_after_s: float,
        keep_open: Sequence[int],
        on_line: Callable[[str, bytes], None] | None,
    ) -> None:
        self.stdout = _Tail(tail_bytes)
        self.stderr = _Tail(tail_bytes)
        self.timed_out = False
        self._lines: dict[_Tail, _Lines] = {}
        if on_line is not None:
            self._lines = {
                tail: _Lines(partial(on_line, name))
                for tail, name in ((self.stdout, "stdout"), (self.stderr, "stderr"))
            }
        self._stdin = memoryview(stdin or b"")
        super().__init__(
            order,
            kill_after_s=kill_after_s,
            keep_open=keep_open,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            output=subprocess.PIPE,
        )

    def __exit__(self, *_: object) -> None:
        """As its parent, and closes the streams."""
        super().__exit__()
        for stream in self._streams():
            stream.close()

    def pump(self, deadline: float | None) -> None:
        """Feeds the program and reads from it until its supervisor has ended; asks it to end at `deadline`."""
        self.start()
        with selectors.DefaultSelector() as selector:
            selector.register(self._status, selectors.EVENT_READ)
            for stream, tail in ((self._process.stdout, self.stdout), (self._process.stderr, self.stderr)):
                assert stream is not None
                selector.register(stream, selectors.EVENT_READ, tail)
            if self._process.stdin is not None:
                os.set_blocking(self._process.stdin.fileno(), False)
                selector.register(self._process.stdin, selectors.EVENT_WRITE)
            give_up: float | None = None
            while selector.get_map():
                end = deadline if give_up is None else give_up
                timeout = None if end is None else end - time.monotonic()
                if timeout is not None and timeout <= 0:
                    if give_up is not None:
                        break
                    deadline = timeout = None
                    self.terminate()
                    self.timed_out = self.terminated_early
                for key, _ in selector.select(timeout):
                    if not self._serve(key):
                        selector.unregister(key.fileobj)
                        if key.fileobj is self._process.stdin:
                            self._process.stdin.close()  # the program sees the end of its input
                if give_up is None and self._status not in selector.get_map():
                    give_up = time.monotonic() + _DRAIN_S
                    self._kill_if_orphaned()

    def _serve(self, key: selectors.SelectorKey) -> bool:
        """Moves some data; False when this stream has ended."""
        if key.events & selectors.EVENT_WRITE:
            return self._feed(key.fd)
        data = os.read(key.fd, READ_BYTES)
        if isinstance(key.data, _Tail):
            key.data.add(data)
            if key.data in self._lines:
                self._lines[key.data].add(data)
        else:
            self._report += data
        return bool(data)

    def _feed(self, fd: int) -> bool:
        try:
            self._stdin = self._stdin[os.write(fd, self._stdin[:READ_BYTES]) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:
            self._stdin = self._stdin[:0]  # it reads no more, which is its own business
        return bool(self._stdin)

    def _streams(self) -> list[IO[bytes]]:
        process = self._process
        return [stream for stream in (process.stdin, process.stdout, process.stderr) if stream]
