"""Workspaces: where they lie, their names, the lock of each, and the notes that say what is finished.

ROOT/NAME/workspace.json      written before the folder gets its name: a workspace is there whole, or not at all
ROOT/NAME/tree/               the checkout; its .git is that of all sessions
ROOT/NAME/sessions/SESSION/   a worktree; finished once .SESSION.json lies beside it
ROOT/.staging/NAME/           what is being made; without the lock's holder it is a dead attempt's
ROOT/.locks/NAME              locked by flock as long as somebody changes the workspace, and never removed
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from dispatcher import Context, Fail

SETTING = "DISPATCHER_WORKSPACES"
LOOK_AGAIN_S = 0.2  # flock tells nobody that it is free, but to those who cannot be canceled while they wait

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def plain_name(name: str) -> str:
    """The name itself, or ValueError."""
    if not _NAME.fullmatch(name) or ".." in name or name.endswith((".", ".lock")):
        raise ValueError(
            "must be 1 to 100 letters, digits and the signs - _ . , begin with a letter, digit or _, "
            "contain no .. and end neither in . nor in .lock"
        )
    return name


Name = Annotated[str, AfterValidator(plain_name)]
"""Of a workspace or session: one folder, and one component of a branch's name, on whatever file system."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """A tenant's workspace by its name, there or not."""

    root: Path
    name: str
    tenant: str | None

    @property
    def folder(self) -> Path:
        """Where it lies once it is ready."""
        return self.root / self.name

    @property
    def tree(self) -> Path:
        """Its checkout."""
        return self.folder / "tree"

    @property
    def sessions(self) -> Path:
        """The folder of its sessions."""
        return self.folder / "sessions"

    @property
    def staging(self) -> Path:
        """Where attempts make it, each in a folder of its own."""
        return self.root / ".staging" / self.name.lower()

    def read(self) -> dict[str, Any] | None:
        """What its note says; None where there is no workspace.

        Raises Fail for a folder that is none, and for another tenant's workspace.
        """
        refuse_other_case(self.root, self.name)
        note = read_note(self.folder / "workspace.json")
        if note is None and os.path.lexists(self.folder):
            raise Fail(f"{self.folder} is no workspace: it has no workspace.json; move it away")
        if note is not None and note["tenant"] != self.tenant:
            raise Fail(f"workspace {self.name!r} belongs to another tenant: choose another name")
        return note

    @contextmanager
    def locked(self, ctx: Context) -> Iterator[int]:
        """Holds the workspace against all others on this host; yields the lock, for programs to inherit."""
        locks = self.root / ".locks"
        locks.mkdir(exist_ok=True)
        # Whoever inherits the descriptor keeps the lock: a program that outlives this process still writes.
        fd = os.open(locks / self.name.lower(), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            while not _try_lock(fd):
                ctx.progress(0, f"waits for another job on workspace {self.name}")
                ctx.sleep(LOOK_AGAIN_S)
            yield fd
        finally:
            os.close(fd)


def find_workspace(name: str, tenant: str | None) -> Workspace:
    """The workspace `name` below the folder that the administrator has set; raises Fail without one."""
    root = os.environ.get(SETTING, "")
    if not root:
        raise Fail(f"workspaces are off: set {SETTING} for the daemon to the folder in which they are made")
    if not Path(root).is_absolute() or not Path(root).is_dir():
        raise Fail(f"{SETTING} must be the absolute path of a folder that exists, not {root!r}")
    return Workspace(Path(root).resolve(), name, tenant)


def refuse_other_case(folder: Path, name: str) -> None:
    """Raises Fail where `folder` has `name` in other letters: on some file systems they are one."""
    for other in os.listdir(folder) if folder.is_dir() else ():  # noqa: PTH208 - only the names are of interest
        if other != name and other.lower() == name.lower():
            raise Fail(f"{other!r} is there already, and differs from {name!r} only in upper and lower case")


def read_note(path: Path) -> dict[str, Any] | None:
    """What write_note() has written; None where it has not."""
    try:
        note: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return note


def write_note(path: Path, note: dict[str, Any]) -> None:
    """Writes a small JSON file, which is there whole or not at all, also after a power cut."""
    new = path.with_name(path.name + ".new")
    with new.open("w") as file:
        json.dump(note, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_folder(folder: Path) -> None:
    """Removes a folder with all in it, also where folders in it are read-only; no error where there is none."""

    def unlock(function: Callable[..., Any], path: str, _: object) -> None:
        if not os.path.lexists(path):
            return
        parent = Path(path).parent
        parent.chmod(0o700)
        if not Path(path).is_symlink():
            Path(path).chmod(0o700)
        if function in (os.unlink, os.rmdir):
            function(path)
        else:
            shutil.rmtree(path)

    shutil.rmtree(folder, onerror=unlock)


def refuse_links_out(top: Path, ctx: Context) -> None:
    """Raises Fail for a symbolic link below `top` that leads out of it, or into its .git.

    Who reads a file of the workspace must not be made to read one of the host's.
    """
    inside = top.resolve()
    for folder, folders, files in os.walk(inside):
        if folder == str(inside) and ".git" in folders:
            folders.remove(".git")
        ctx.raise_if_canceled()
        for name in (*folders, *files):
            link = Path(folder, name)
            if not link.is_symlink():
                continue
            target = os.readlink(link)  # noqa: PTH115 - the text as it stands
            end = Path(os.path.realpath(link))
            if Path(target).is_absolute() or not end.is_relative_to(inside) or end.is_relative_to(inside / ".git"):
                shown = link.relative_to(inside)
                raise Fail(f"a symbolic link leads out of the folder: {str(shown)!r} -> {target!r}")


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
