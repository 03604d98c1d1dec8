"""Templates: a folder of the administrator's, copied without its surprises."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from dispatcher import Context, Fail

from .workspaces import plain_name

SETTING = "DISPATCHER_TEMPLATES"
MAX_FILES = 100_000  # some minutes of copying; a template with more is most likely none
MAX_BYTES = 2 << 30  # the copy is stored twice, in the folder and in its repository
CHUNK_BYTES = 1 << 20


def _plain_path(template: str) -> str:
    for part in template.split("/"):
        plain_name(part)
    return template


Template = Annotated[str, AfterValidator(_plain_path)]
"""A folder below DISPATCHER_TEMPLATES; `/` divides the folders on the way."""


def copy_template(template: str, target: Path, ctx: Context) -> None:
    """Copies a template into the new folder `target`; raises Fail for what is no template.

    Only regular files, folders and symbolic links are copied; where links lead is not looked at here.
    """
    _Copy(target, ctx).run(_open(template))


def _open(template: str) -> int:
    """The folder, reached without following any link below the administrator's folder."""
    top = os.environ.get(SETTING, "")
    if not top:
        raise Fail(f"templates are off: set {SETTING} for the daemon to the folder that has them")
    try:
        at = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as exc:
        raise Fail(f"{SETTING} cannot be opened: {exc.strerror}") from exc
    for part in template.split("/"):
        try:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
        except OSError as exc:
            raise Fail(f"there is no template {template!r}: {exc.strerror}") from exc
        finally:
            os.close(at)
        at = below
    return at


def _raise(error: OSError) -> None:
    raise error  # or a folder that cannot be read would be missing without a word


class _Copy:
    """One copy, and how much it has copied."""

    def __init__(self, target: Path, ctx: Context) -> None:
        self._target = target
        self._ctx = ctx
        self._files = 0
        self._bytes = 0

    def run(self, top: int) -> None:
        """Copies the folder that `top` is open on, and closes it."""
        try:
            # By descriptors: a folder that is swapped for a link meanwhile is not followed.
            for folder, folders, files, fd in os.fwalk(".", dir_fd=top, follow_symlinks=False, onerror=_raise):
                self._target.joinpath(folder).mkdir(mode=0o755, exist_ok=True)
                for name in sorted(folders + files):
                    self._check(Path(folder, name))
                    self._copy(fd, name, self._target / folder / name)
                self._ctx.progress(0, f"{self._files} files copied")
        finally:
            os.close(top)

    def _check(self, path: Path) -> None:
        self._ctx.raise_if_canceled()
        self._files += 1
        if self._files > MAX_FILES:
            raise Fail(f"the template has more than {MAX_FILES} files")
        if path.name.lower() == ".git":  # its configuration can name programs to run
            raise Fail(f"the template contains a repository: {str(path)!r}")

    def _copy(self, folder: int, name: str, target: Path) -> None:
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            return  # its own turn comes
        if stat.S_ISLNK(mode):
            target.symlink_to(os.readlink(name, dir_fd=folder))
            return
        # O_NONBLOCK: to open a FIFO would wait for its writer.
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder) if stat.S_ISREG(mode) else -1
        if fd < 0 or not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Fail(f"the template contains what is neither file, folder nor link: {name!r}")
        with os.fdopen(fd, "rb", buffering=0) as source, target.open("xb") as copy:
            target.chmod(0o755 if mode & stat.S_IXUSR else 0o644)
            while data := source.read(CHUNK_BYTES):
                self._ctx.raise_if_canceled()
                self._bytes += len(data)
                if self._bytes > MAX_BYTES:
                    raise Fail(f"the template has more than {MAX_BYTES} bytes")
                copy.write(data)
