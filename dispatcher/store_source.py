"""What a job gives to the store: a name, and bytes that come a chunk at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from dispatcher.errors import StoreError

CHUNK = 1 << 20
MAX_NAME = 200  # characters
MAX_NAME_BYTES = 255  # what file systems take
RESULT = "result.json"
"""The file of a result that was too large for its row."""


@runtime_checkable
class Stream(Protocol):
    """A file opened for reading bytes, or what behaves so."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""


Source: TypeAlias = bytes | bytearray | memoryview | os.PathLike[str] | Stream


def check_name(name: str) -> str:
    """`name`, if a job may store a file under it; raises StoreError."""
    if not 0 < len(name) <= MAX_NAME:
        raise StoreError(f"a stored file needs a name of 1 to {MAX_NAME} characters, not {name!r:.50}")
    if "/" in name or "\x00" in name or name in (".", ".."):
        raise StoreError(f"a stored file's name must hold no / and no NUL, and not be . or ..: {name!r}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise StoreError(f"a stored file's name must be Unicode text: {name!r}") from None
    if size > MAX_NAME_BYTES:
        raise StoreError(f"a stored file's name must be at most {MAX_NAME_BYTES} bytes long; this one has {size}")
    if name == RESULT:
        raise StoreError(f"the name {RESULT} is kept for results that are too large for the database")
    return name


def chunks(source: Source, check: Callable[[], None]) -> Iterator[bytes | memoryview]:
    """What `source` holds, a chunk at a time."""
    if isinstance(source, bytes | bytearray | memoryview):
        view = memoryview(source).cast("B")
        for start in range(0, len(view), CHUNK):
            check()
            yield view[start : start + CHUNK]
    elif isinstance(source, os.PathLike):
        with Path(source).open("rb") as file:
            yield from chunks(file, check)
    elif isinstance(source, Stream):
        while True:
            check()
            chunk = source.read(CHUNK)
            if not isinstance(chunk, bytes | bytearray | memoryview):
                raise TypeError(f"the stream must give bytes, not {type(chunk).__name__}: open the file with 'rb'")
            if not chunk:
                return
            yield chunk
    else:
        raise TypeError(f"give bytes, a Path or a stream of bytes to store, not {type(source).__name__}")
