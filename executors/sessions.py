"""Sessions: worktrees of a workspace, each finished or to be cleared away, never something in between.

Beside each lies a note, .SESSION.json, in one of two states: `ready`, or not, while it is made or removed. Whoever
finds the latter under the lock of the workspace clears away what a dead attempt has left.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dispatcher import Context, Fail

from .workspace_git import START, Git, GitFailed
from .workspaces import (
    Workspace,
    read_note,
    refuse_links_out,
    refuse_other_case,
    remove_folder,
    sync_folder,
    write_note,
)

_UNMAKEABLE = ("is not a valid branch name", "cannot create 'refs/heads/")


@dataclass(frozen=True, slots=True)
class Session:
    """A session by its name, there or not. For who has the lock of its workspace."""

    workspace: Workspace
    name: str
    git: Git

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.workspace.sessions / self.name

    @property
    def _note(self) -> Path:
        return self.workspace.sessions / f".{self.name}.json"

    def read(self) -> dict[str, Any] | None:
        """What was noted when it was finished; None where there is none. Clears away what is left of a dead attempt."""
        refuse_other_case(self.workspace.sessions, self.name)
        note = read_note(self._note)
        if note is not None and not note["ready"]:
            self.clear(note["branch"])
            return None
        if note is None and os.path.lexists(self.folder):
            raise Fail(f"{self.folder} is no session: move it away")
        return note

    def make(self, ctx: Context, *, ref: str | None, branch: str) -> dict[str, Any]:
        """Makes it on a new branch, or leaves nothing of it."""
        commit = self._start(ref)
        if self.git.commit(f"refs/heads/{branch}") is not None:
            raise Fail(f"branch {branch!r} is there already: choose another")
        note = {"ready": False, "ref": ref, "branch": branch, "commit": commit}
        write_note(self._note, note)
        try:
            self.git("worktree", "add", "--quiet", "--no-track", "-b", branch, "--", str(self.folder), commit)
            refuse_links_out(self.folder, ctx)
            write_note(self._note, note | {"ready": True})
        except BaseException as exc:
            # What cannot be cleared away now is noted for the next try.
            with suppress(GitFailed, OSError):
                self.clear(branch)
            if isinstance(exc, GitFailed) and any(words in str(exc) for words in _UNMAKEABLE):
                raise Fail(f"branch {branch!r} cannot be made, choose another: {exc}") from exc
            raise
        return note

    def remove(self, note: dict[str, Any], *, force: bool) -> str | None:
        """Removes it, unless work would be lost; the branch, where it is kept because it has commits."""
        if not force:
            self._refuse_use()
        at = self.git.commit(f"refs/heads/{note['branch']}")
        changed = at is not None and at != note["commit"]
        branch = None if changed else note["branch"]
        write_note(self._note, note | {"ready": False, "branch": branch})
        self.clear(branch)
        return note["branch"] if changed else None

    def clear(self, branch: str | None) -> None:
        """Removes what is there of it and of its branch, also in a job that was canceled; can be repeated."""
        git = replace(self.git, ctx=None)
        # First the folder: git takes one that is missing for a worktree to forget, but one in pieces for no worktree.
        if os.path.lexists(self.folder):
            remove_folder(self.folder)
        with suppress(GitFailed):  # it is none of git's worktrees, not yet or no longer
            git("worktree", "remove", "--force", "--force", "--", str(self.folder))
        git("worktree", "prune")
        if branch is not None:
            # Left by a git that was killed; the branch was this session's alone.
            with suppress(FileNotFoundError, NotADirectoryError):  # the latter where a branch has a part of its name
                (self.git.tree / ".git" / "refs" / "heads" / f"{branch}.lock").unlink()
            if git.commit(f"refs/heads/{branch}") is not None:
                git("update-ref", "-d", f"refs/heads/{branch}")
        self._note.unlink(missing_ok=True)
        sync_folder(self.workspace.sessions)

    def _start(self, ref: str | None) -> str:
        places = ("tags", "heads", "remotes/origin")  # in git's own order
        names = [START] if ref is None else [f"refs/{place}/{ref}" for place in places]
        if ref is not None and all(char in "0123456789abcdef" for char in ref) and len(ref) >= 7:
            names.append(ref)
        for name in names:
            if commit := self.git.commit(name):
                return commit
        raise Fail(f"workspace {self.workspace.name!r} has no branch, tag or commit {ref!r}")

    def _refuse_use(self) -> None:
        """Raises Fail where somebody's work is not in the repository, or who works there has locked it."""
        if not self.folder.is_dir():
            return
        own = replace(self.git, tree=self.folder)
        if own("status", "--porcelain", at=self.folder):
            raise Fail(f"session {self.name!r} has changes that are not committed: commit them, or give force")
        if own("rev-list", "--max-count=1", "HEAD", "--not", "--branches", "--tags", "--remotes", at=self.folder):
            raise Fail(f"session {self.name!r} has commits that are on no branch: make one, or give force")
        if (self.folder / own("rev-parse", "--git-dir", at=self.folder) / "locked").exists():
            raise Fail(f"session {self.name!r} is in use: it was locked by git worktree lock; unlock it, or give force")
