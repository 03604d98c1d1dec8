"""Types `session_init` and `session_remove`: sessions in a workspace, each a git worktree on a branch of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict

from dispatcher import Context, Fail, Job, executor

from .sessions import Session
from .workspace_git import Git, Ref
from .workspaces import Name, find_workspace


class SessionPayload(BaseModel):
    """What `session_init` accepts."""

    model_config = ConfigDict(extra="forbid")

    workspace: Name
    session: Name
    ref: Ref | None = None
    """A branch, tag or commit that the workspace has; by default what the workspace was made from."""
    branch: Ref | None = None
    """The new branch it works on; by default session/ and its name."""


class RemovalPayload(BaseModel):
    """What `session_remove` accepts."""

    model_config = ConfigDict(extra="forbid")

    workspace: Name
    session: Name
    force: bool = False
    """Also with changes that are not committed, and where it was locked."""


@executor(
    "session_init",
    limit=10,
    timeout=timedelta(minutes=15),
    max_attempts=3,
    payload=SessionPayload,
)
def session_init(job: Job, ctx: Context) -> dict[str, Any]:
    """Makes a session in a workspace that is ready, unless it is there."""
    started = time.monotonic()
    payload: SessionPayload = job.payload
    branch = payload.branch or f"session/{payload.session}"
    with _session(payload, ctx) as session:
        if session is None:
            raise Fail(
                f"there is no workspace {payload.workspace!r} on this host: enqueue this job `after` its workspace_init"
            )
        note = session.read()
        created = note is None
        if note is None:
            ctx.progress(10, f"checks out {payload.session}")
            note = session.make(ctx, ref=payload.ref, branch=branch)
        elif not session.folder.is_dir():
            raise Fail(f"the folder of session {payload.session!r} was removed by hand: enqueue session_remove first")
    if (note["ref"], note["branch"]) != (payload.ref, branch):
        raise Fail(f"session {payload.session!r} is there already, from {note['ref']!r} on branch {note['branch']!r}")
    ctx.progress(100, "ready")
    return {
        "workspace": payload.workspace,
        "session": payload.session,
        "path": str(session.folder),
        "branch": branch,
        "commit": note["commit"],
        "created": created,
        "seconds": round(time.monotonic() - started, 3),
    }


@executor(
    "session_remove",
    limit=10,
    timeout=timedelta(minutes=15),
    max_attempts=3,
    payload=RemovalPayload,
)
def session_remove(job: Job, ctx: Context) -> dict[str, Any]:
    """Removes a session, unless work in it would be lost."""
    payload: RemovalPayload = job.payload
    answer = {"workspace": payload.workspace, "session": payload.session}
    with _session(payload, ctx) as session:
        note = session.read() if session else None
        if session is None or note is None:
            return answer | {"removed": False, "branch_kept": None}
        kept = session.remove(note, force=payload.force)
    return answer | {"removed": True, "branch_kept": kept}


@contextmanager
def _session(payload: SessionPayload | RemovalPayload, ctx: Context) -> Iterator[Session | None]:
    """A session while its workspace is locked; None where there is no such workspace."""
    place = find_workspace(payload.workspace, ctx.job.tenant)
    # Before there is a workspace, the lock is held by the job that makes it.
    with place.locked(ctx) as lock:
        ready = place.read() is not None
        yield Session(place, payload.session, Git(place.tree, ctx, lock)) if ready else None
