"""NDJSON files, plain or gzip, as a stream of chunks of lines."""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from dispatcher.cli.base import fail
from dispatcher.errors import InvalidPayload
from dispatcher.operations import CHUNK

BLOCK = 1 << 20  # read, checked and sent at once: large enough to be cheap, small enough to show progress
LONGEST = 256 << 20  # of a line; the limit on payloads can be no higher
GZIP_MAGIC = b"\x1f\x8b"


@contextmanager
def open_lines(name: str, progress: Callable[[int], None]) -> Iterator[Iterator[list[tuple[int, str]]]]:
    """Chunks of (line number, text) of a file, `-` for standard input; `progress` is told of bytes read."""
    try:
        raw = cast(BinaryIO, sys.stdin.buffer if name == "-" else Path(name).open("rb"))  # noqa: SIM115 - below
    except OSError as exc:
        fail(f"cannot read {name}: {exc.strerror}")
    with raw:
        counted = io.BufferedReader(_Counted(raw, progress), BLOCK)
        packed = counted.peek(2)[:2] == GZIP_MAGIC
        yield _chunks(gzip.GzipFile(fileobj=counted) if packed else counted, name)


class _Counted(io.RawIOBase):
    """Tells how many bytes were read, which for a gzip file is another number than comes out of it."""

    def __init__(self, inner: BinaryIO, progress: Callable[[int], None]) -> None:
        self._inner = inner
        self._progress = progress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # what BufferedReader passes
        read = self._inner.read1 if hasattr(self._inner, "read1") else self._inner.read
        data = read(len(buffer))
        buffer[: len(data)] = data
        self._progress(len(data))
        return len(data)


def _chunks(stream: io.BufferedIOBase, name: str) -> Iterator[list[tuple[int, str]]]:
    number, rest = 1, b""
    while True:
        try:
            block = stream.read1(BLOCK)
        except (OSError, EOFError, zlib.error) as exc:
            fail(f"line {number}: cannot read {name}: {exc}")
        complete, newline, rest = (rest + block).rpartition(b"\n")
        if len(rest) > LONGEST:
            raise InvalidPayload(
                f"line {number}: it is longer than {LONGEST} bytes: is {name} NDJSON, one object a line?"
            )
        lines = complete.split(b"\n") if newline else []
        if not block and rest:
            lines.append(rest)
        if number == 1 and lines:
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
        yield from _decoded(number, lines)
        number += len(lines)
        if not block:
            return


def _decoded(first: int, lines: list[bytes]) -> Iterator[list[tuple[int, str]]]:
    """Numbered texts, a few thousand at a time; blank lines are left out."""
    decoded: list[tuple[int, str]] = []
    for number, line in enumerate(lines, first):
        try:
            text = line.decode().strip()
        except UnicodeDecodeError as exc:
            yield decoded  # something may be wrong with these as well, and they come first
            raise InvalidPayload(f"line {number}: it is not UTF-8: {exc.reason} at byte {exc.start + 1}") from None
        if text:
            decoded.append((number, text))
        if len(decoded) >= CHUNK:
            yield decoded
            decoded = []
    if decoded:
        yield decoded
