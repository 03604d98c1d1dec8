"""Files for bulk_import: opened inside the allowed folder only, read in batches of records."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import zlib
from collections import deque
from pathlib import Path
from typing import IO, Any, Self

MAX_RECORD_BYTES = 4 << 20  # a quote that is never closed must not take the rest of the file into memory
MAX_BATCH_BYTES = 8 << 20
HEAD_BYTES = 65536  # of the file, to tell it from another one
BOM = b"\xef\xbb\xbf"

Record = tuple[int, bytes]
"""The number of its first physical line, counted from 1, and its bytes."""


class FileProblem(Exception):
    """The file cannot be read; one line for a person."""


def open_inside(root: str, path: str) -> int:
    """A file descriptor of the regular file `path` below `root`; links may not lead out of it.

    Links are resolved first; the resolved path is then walked folder by folder with O_NOFOLLOW, so that who
    swaps a folder for a link in between gets an error and not another file.
    """
    top = os.path.realpath(root)
    real = Path(os.path.realpath(Path(top, path)))
    if not real.is_relative_to(top) or str(real) == top:
        raise FileProblem(f"{path!r} is not inside the import folder")
    *folders, name = real.relative_to(top).parts
    try:
        at = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
        for folder in folders:
            at = _step(at, folder, os.O_DIRECTORY)
        # O_NONBLOCK: to open a FIFO would wait for its writer.
        fd = _step(at, name, os.O_NONBLOCK)
    except OSError as exc:
        raise FileProblem(f"cannot open {path!r}: {exc.strerror}") from exc
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileProblem(f"{path!r} is no regular file")
    return fd


def _step(at: int, name: str, flags: int) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | flags, dir_fd=at)
    finally:
        os.close(at)


class OpenFile:
    """A file that one try reads, and the next knows again. `offset` and `line` are what open at the next record."""

    unit = "line"
    """What `line` counts, from 1."""

    def __init__(self, fd: int, *, name: str) -> None:
        self._file = open(fd, "rb", buffering=0)  # noqa: SIM115 - closed by close(); has no path
        self._name = name
        self._info = os.fstat(fd)
        self.bytes = self._info.st_size
        self.offset = 0
        self.line = 1
        self.refused: list[tuple[int, bytes, str]] = []
        """Records too long to be one, with the reason. Nothing more is read until this list is cleared."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    @property
    def identity(self) -> dict[str, Any]:
        """Tells this file from another one under the same name, on whatever host."""
        return {
            "size": self._info.st_size,
            "modified_ns": self._info.st_mtime_ns,
            "head": self._digest(HEAD_BYTES, 0),
        }

    @property
    def changed(self) -> bool:
        """True when somebody has written to the file since it was opened."""
        now = os.fstat(self._file.fileno())
        return (now.st_size, now.st_mtime_ns) != (self._info.st_size, self._info.st_mtime_ns)

    def _digest(self, size: int, at: int) -> str:
        return hashlib.sha256(os.pread(self._file.fileno(), size, at)).hexdigest()


class Source(OpenFile):
    """A text file, plain or gzip, as batches of records."""

    def __init__(self, fd: int, *, name: str, quoted: bool) -> None:
        super().__init__(fd, name=name)
        self._quoted = quoted  # CSV: a record goes on while a quote is open
        plain: Any = gzip.GzipFile(fileobj=self._file) if name.endswith(".gz") else self._file
        self._stream: IO[bytes] = io.BufferedReader(plain, 1 << 20)
        self._pushed_back: deque[bytes] = deque()

    def close(self) -> None:
        """Closes the file and what unpacks it."""
        self._stream.close()
        super().close()

    @property
    def percent(self) -> float:
        """How much of the file was read; of a gzip file its compressed bytes count."""
        return 100.0 * self._file.tell() / self.bytes if self.bytes else 100.0

    def seek(self, offset: int, line: int) -> None:
        """Goes on at a record. In a gzip file everything before it must be unpacked again."""
        self._guarded(self._stream.seek, offset)
        self._pushed_back.clear()
        self.refused.clear()
        self.offset, self.line = offset, line

    def take(self, count: int) -> list[Record]:
        """The next records, at most `count` and about MAX_BATCH_BYTES, or fewer where one is refused."""
        records: list[Record] = []
        size = 0
        while len(records) < count and size < MAX_BATCH_BYTES and not self.refused:
            line = self._next_line()
            if not line:
                break
            if len(line) >= MAX_RECORD_BYTES and not line.endswith(b"\n"):
                self._refuse_line(line)
                break
            if self._quoted and b'"' in line and line.count(b'"') & 1:
                joined = self._join(line)
                if joined is None:
                    self._refuse(line, "a quote opens here that is never closed")
                    break
                line = joined
            records.append((self.line, line))
            self._advance(line)
            size += len(line)
        return records

    def _advance(self, data: bytes) -> None:
        self.offset += len(data)
        self.line += data.count(b"\n")

    def _next_line(self) -> bytes:
        if self._pushed_back:
            return self._pushed_back.popleft()
        line: bytes = self._guarded(self._stream.readline, MAX_RECORD_BYTES)
        if self.offset == 0 and line.startswith(BOM):
            self.offset = len(BOM)
            return line[len(BOM) :]
        return line

    def _join(self, first: bytes) -> bytes | None:
        """A record of several lines, up to the one that closes its quote; None where none does."""
        lines = [first]
        size = len(first)
        while size <= MAX_RECORD_BYTES:
            line = self._next_line()
            if not line:
                break
            lines.append(line)
            size += len(line)
            if line.count(b'"') & 1:
                return b"".join(lines)
        self._pushed_back.extendleft(reversed(lines[1:]))
        return None

    def _refuse(self, line: bytes, reason: str) -> None:
        self.refused.append((self.line, line[:1000], reason))
        self._advance(line)

    def _refuse_line(self, start: bytes) -> None:
        self._refuse(start, f"a line longer than {MAX_RECORD_BYTES >> 20} MiB")
        rest = start
        while rest and not rest.endswith(b"\n"):
            rest = self._next_line()
            self._advance(rest)

    def _guarded(self, read: Any, argument: int) -> Any:
        try:
            return read(argument)
        except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
            raise FileProblem(f"{self._name!r} is damaged or cut off after line {self.line}: {exc}") from exc
