"""Type `workspace_init`: makes a workspace from a git repository or a template, once, and whole or not at all.

It is made in a folder of the attempt's own and renamed into place, under a lock that lasts as long as anybody writes
there. What a dead attempt left is removed by the next one that gets the lock.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from dispatcher import Context, Fail, Job, clean_environment, executor, run_program

from .workspace_git import START, Git, GitSource
from .workspace_template import Template, copy_template
from .workspaces import (
    Name,
    Workspace,
    find_workspace,
    refuse_links_out,
    remove_folder,
    sync_folder,
    write_note,
)


class WorkspacePayload(BaseModel):
    """What `workspace_init` accepts."""

    model_config = ConfigDict(extra="forbid")

    workspace: Name
    git: GitSource | None = None
    template: Template | None = None

    @model_validator(mode="after")
    def _one_source(self) -> WorkspacePayload:
        if (self.git is None) == (self.template is None):
            raise ValueError("give either git or template")
        return self

    @property
    def source(self) -> dict[str, Any]:
        """What the workspace is made from, as its note keeps it."""
        return self.model_dump(include={"git", "template"}, exclude_none=True)


@executor(
    "workspace_init",
    limit=5,
    timeout=timedelta(hours=1),
    max_attempts=5,  # networks fail
    payload=WorkspacePayload,
)
def workspace_init(job: Job, ctx: Context) -> dict[str, Any]:
    """Makes a workspace from a git repository or a template folder, unless it is there."""
    started = time.monotonic()
    payload: WorkspacePayload = job.payload
    workspace = find_workspace(payload.workspace, job.tenant)
    with workspace.locked(ctx) as lock:
        note = workspace.read()
        created = note is None
        if note is None:
            note = _make(workspace, payload, job, ctx, lock)
    if note["source"] != payload.source:
        raise Fail(f"workspace {payload.workspace!r} is there already, made from something else: {note['source']}")
    return {
        "workspace": payload.workspace,
        "path": str(workspace.tree),
        "commit": note["commit"],
        "created": created,
        "seconds": round(time.monotonic() - started, 3),
    }


def _make(workspace: Workspace, payload: WorkspacePayload, job: Job, ctx: Context, lock: int) -> dict[str, Any]:
    remove_leftovers(workspace)
    staging = workspace.staging / f"{job.id}-{job.attempt}"
    tree = staging / "tree"
    try:
        tree.mkdir(parents=True)
        (staging / "sessions").mkdir()
        git = Git(tree, ctx, lock)
        if payload.git is not None:
            commit = git.fetch(payload.git)
        else:
            assert payload.template is not None
            commit = _from_template(payload.template, git, ctx)
        refuse_links_out(tree, ctx)
        note: dict[str, Any] = {"workspace": payload.workspace, "tenant": job.tenant, "source": payload.source}
        note |= {"commit": commit, "job": job.id}
        _flush(staging, ctx)
        write_note(staging / "workspace.json", note)
        ctx.raise_if_canceled()
        staging.rename(workspace.folder)
        sync_folder(workspace.root)
    finally:
        remove_leftovers(workspace)
    ctx.progress(100, "ready")
    return note


def _from_template(template: str, git: Git, ctx: Context) -> str:
    """The copy becomes a repository of one commit, so that its sessions are made as any other's."""
    copy_template(template, git.tree, ctx)
    refuse_links_out(git.tree, ctx)
    git("init", "--quiet", "--template=", "--initial-branch=main")
    git("add", "--all", "--force", "--", ".")
    git("commit", "--quiet", "--allow-empty", "--no-verify", "--message", f"From template {template}")
    git("update-ref", START, "HEAD")
    return git.check_out()


def _flush(folder: Path, ctx: Context) -> None:
    """A name that outlives a power cut must not stand for files that did not."""
    ended = run_program(["sync", "--file-system", str(folder)], ctx=ctx, env=clean_environment())
    if ended.exit_status != 0:  # a `sync` that knows no options
        os.sync()


def remove_leftovers(workspace: Workspace) -> None:
    """Removes what attempts have left that did not end; only for who has the lock."""
    if workspace.staging.exists():
        remove_folder(workspace.staging)
