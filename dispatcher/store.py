"""The store: where results too large for their row go, and whatever else a job leaves behind.

A folder, or by fsspec anything that a URL names. A key is {store}/{installation}/{job}/{attempt}/{name}: two databases
may share a store, and a late attempt cannot write over what a newer one stored. A file is written under another name
first, and comes to its own only when it is whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit
from uuid import UUID

from dispatcher.errors import SettingsError, StoreError
from dispatcher.store_kinds import FolderStore, UrlStore, filesystem
from dispatcher.store_source import RESULT, Source


class Store(Protocol):
    """One installation's part of a store."""

    def put(self, job_id: int, attempt: int, name: str, source: Source, check: Callable[[], None]) -> str:
        """Stores a file, a chunk at a time, with a `check` before each; returns its URL. It is whole, or not there."""

    def remove(self, job_id: int) -> None:
        """Removes all that the attempts of a job stored."""

    def job_ids(self) -> Iterator[int]:
        """The jobs that have a folder here, in no order."""


def open_store(location: str, installation: UUID) -> Store:
    """The store at a folder or URL; raises SettingsError where it cannot be one."""
    if (folder := _folder(location)) is not None:
        return FolderStore(folder, installation)
    if urlsplit(location).password:
        raise SettingsError("result_store must not hold a password: result_url would show it to everybody")
    if set(location) & set("*?[]#"):
        raise SettingsError("result_store must not contain any of * ? [ ] #")
    try:
        return UrlStore(location, installation)
    except (ImportError, ValueError) as exc:
        raise SettingsError(_lacking(location, exc)) from exc


def load_result(value: Any, url: str | None) -> Any:
    """A job's result: `value`, or what was stored in its place under `url`; raises StoreError."""
    if value is not None or url is None or url.rpartition("/")[2] != RESULT:
        return value
    try:
        return json.loads(read(url))
    except ValueError as exc:
        raise StoreError(f"the stored result {url} is no JSON") from exc


def read(url: str) -> bytes:
    """A stored file; raises StoreError in one line."""
    try:
        if (folder := _folder(url)) is not None:
            return folder.read_bytes()
        fs, path = filesystem(url)
        with fs.open(path, "rb") as file:
            return bytes(file.read())
    except FileNotFoundError as exc:
        raise StoreError(f"the stored result {url} is not there: removed, or in a folder of another host") from exc
    except (ImportError, ValueError) as exc:
        raise StoreError(_lacking(url, exc)) from exc
    except Exception as exc:  # each of fsspec's packages has errors of its own
        raise StoreError(f"cannot read the stored result {url}: {type(exc).__name__}: {_line(exc)}") from exc


def _folder(location: str) -> Path | None:
    if location.startswith("file://"):
        return Path(unquote(urlsplit(location).path))
    if "://" in location or "::" in location:
        return None
    return Path(location).expanduser().absolute()


def _lacking(url: str, exc: Exception) -> str:
    if isinstance(exc, ModuleNotFoundError) and (exc.name or "").startswith("fsspec"):
        return f"the store {url} needs fsspec: pip install 'pg-dispatcher[store]'"
    return f"the store {url} cannot be opened: {_line(exc)}"


def _line(exc: BaseException) -> str:
    return " ".join(str(exc).split())
