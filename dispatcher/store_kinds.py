"""The kinds of stores: a folder, and what fsspec finds under a URL. Only what has our keys' shape is ever removed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

from dispatcher.errors import SettingsError
from dispatcher.store_source import Source, chunks

_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_OUR_FILE = re.compile(r"[1-9][0-9]*/[^/]+")  # within a job's folder


class FolderStore:
    """A folder that all replicas, and whoever reads results, see under the same path."""

    def __init__(self, folder: Path, installation: UUID) -> None:
        self._root = folder / str(installation)
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise SettingsError(f"cannot make the folder {self._root} of result_store: {exc.strerror}") from exc
        if not os.access(self._root, os.W_OK | os.X_OK):
            raise SettingsError(f"result_store: this user may not write to {self._root}")

    def put(self, job_id: int, attempt: int, name: str, source: Source, check: Callable[[], None]) -> str:
        """See Store.put. On disk, and under its name, when this returns."""
        folder = self._root / str(job_id) / str(attempt)
        folder.mkdir(parents=True, exist_ok=True)
        temporary, final = folder / f".{secrets.token_hex(8)}.part", folder / name
        try:
            with temporary.open("xb") as file:
                for chunk in chunks(source, check):
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        for changed in (folder, folder.parent, self._root):
            _sync(changed)
        return final.as_uri()

    def remove(self, job_id: int) -> None:
        """See Store.remove."""
        job = self._root / str(job_id)
        if job.is_symlink():
            return
        for attempt in _numbered(job):
            folder = job / str(attempt)
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_file(follow_symlinks=False):
                        Path(entry.path).unlink(missing_ok=True)
            _remove_empty(folder)
        _remove_empty(job)

    def job_ids(self) -> Iterator[int]:
        """See Store.job_ids."""
        return _numbered(self._root)


class UrlStore:
    """Whatever fsspec finds under a URL. Names are percent-encoded in the keys themselves."""

    def __init__(self, url: str, installation: UUID) -> None:
        self._installation = installation
        self._url = f"{url.rstrip('/')}/{installation}"
        self._fs, self._root = filesystem(self._url)

    def put(self, job_id: int, attempt: int, name: str, source: Source, check: Callable[[], None]) -> str:
        """See Store.put."""
        folder, key = f"{self._root}/{job_id}/{attempt}", quote(name, safe="")
        temporary = f"{folder}/.{secrets.token_hex(8)}.part"
        try:
            with self._create(temporary, folder) as file:
                for chunk in chunks(source, check):
                    file.write(chunk)
            self._fs.mv(temporary, f"{folder}/{key}")
        except BaseException:
            with contextlib.suppress(Exception):  # what is left goes with the job
                self._fs.rm_file(temporary)
            raise
        return f"{self._url}/{job_id}/{attempt}/{key}"

    def remove(self, job_id: int) -> None:
        """See Store.remove."""
        folder = f"{self._root}/{job_id}"
        self._fs.invalidate_cache(folder)
        found = [str(path) for path in self._fs.find(folder)]
        inside = [(path, path.partition(f"/{self._installation}/{job_id}/")[2]) for path in found]
        ours = [(path, rest) for path, rest in inside if _OUR_FILE.fullmatch(rest)]
        if ours:
            self._fs.rm([path for path, _ in ours])
        # Where there are folders, empty ones stay behind.
        attempts = {rest.partition("/")[0] for _, rest in ours}
        for empty in (*(f"{folder}/{attempt}" for attempt in attempts), folder):
            with contextlib.suppress(Exception):
                self._fs.rmdir(empty)

    def job_ids(self) -> Iterator[int]:
        """See Store.job_ids."""
        self._fs.invalidate_cache(self._root)
        try:
            paths = self._fs.ls(self._root, detail=False)
        except FileNotFoundError:
            return
        for path in paths:
            name = str(path).rstrip("/").rpartition("/")[2]
            if _NUMBER.fullmatch(name):
                yield int(name)

    def _create(self, path: str, folder: str) -> Any:
        try:
            return self._fs.open(path, "wb")
        except FileNotFoundError:  # where folders have to be made first
            self._fs.makedirs(folder, exist_ok=True)
            return self._fs.open(path, "wb")


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it; raises ImportError, ValueError."""
    from fsspec.core import url_to_fs  # noqa: PLC0415 - not installed with the core

    fs, path = url_to_fs(url)
    return fs, str(path)


def _numbered(folder: Path) -> Iterator[int]:
    """The folders in a folder that have a number for a name; links are none of ours."""
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            if _NUMBER.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                yield int(entry.name)


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError as exc:  # somebody else's files stay, and so does their folder
        if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR):
            raise


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as exc:  # some network file systems cannot
        if exc.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)
