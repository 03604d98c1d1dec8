"""git for workspaces: from the URLs that are allowed, and without what a URL or a repository could make it run."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dispatcher import Context, Fail, clean_environment, run_program

from .lists import read_list

SETTING = "DISPATCHER_GIT_URLS"
CONFIG_SETTING = "DISPATCHER_GIT_CONFIG"
SSH_SETTING = "DISPATCHER_GIT_SSH_COMMAND"
EXAMPLE = '["https://github.com/acme/", "ssh://git@git.local/"]'
SCHEMES = ("https", "ssh", "http", "git", "file")  # ext:: and the other helpers run programs
START = "refs/workspace/start"
"""The ref that keeps what a workspace was made from."""

# Given with each command, where they outweigh what a repository or the administrator's file says.
SAFE = (
    "protocol.allow=never",
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.protectHFS=true",
    "core.protectNTFS=true",
    "http.followRedirects=false",  # to where the administrator has not allowed
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    "fetch.unpackLimit=1",  # a pack is one file, and written with its progress
    "commit.gpgSign=false",
    "gc.auto=0",  # it would go on in the background
    "maintenance.auto=false",
)
# The steps of a clone that git counts, and where their percentages begin and end in the job's.
STEPS = {"Receiving objects": (0, 70), "Resolving deltas": (70, 90), "Updating files": (90, 99)}

_PROGRESS = re.compile(rf"({'|'.join(STEPS)}): +(\d+)%")
_CREDENTIALS = re.compile(r"(https?://)[^/\s]*@|(\w+://)[^/\s:]*:[^/\s]*@")
_HOPELESS = ("couldn't find remote ref", "does not appear to be a git repository", "not our ref", "no such ref")


def _no_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    user, at, _ = rest.partition("/")[0].rpartition("@")
    if at and (":" in user or scheme.lower() != "ssh"):  # for https the user alone is often a token
        raise ValueError(
            "must not contain a user or password: credentials are the administrator's, see DISPATCHER_GIT_CONFIG"
        )
    return url


def _plain_ref(ref: str) -> str:
    """What git takes for a ref and nothing else: no option, no refspec, no expression."""
    if not re.fullmatch(r"[^\x00-\x20\x7f~^:?*\[\\+/@-][^\x00-\x20\x7f~^:?*\[\\]{0,249}", ref):
        raise ValueError("is no name of a branch or tag, and no commit")
    if any(part in ref for part in ("..", "@{", "//", "/.")) or ref.endswith(("/", ".", ".lock")) or ref[0] == ".":
        raise ValueError("is no name of a branch or tag, and no commit")
    return ref


Ref = Annotated[str, AfterValidator(_plain_ref)]
"""A branch, a tag or a commit."""


class GitSource(BaseModel):
    """A repository, and what of it."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[str, AfterValidator(_no_password), Field(max_length=2000)]
    """Must begin with one of DISPATCHER_GIT_URLS."""
    ref: Ref | None = None
    """A branch, a tag, or a commit in full; by default the repository's own choice."""
    depth: int | None = Field(default=None, ge=1, le=1_000_000)
    """So many commits of its history, and no other branch; by default all."""


class GitFailed(Exception):
    """git ended with an error."""


@dataclass(frozen=True, slots=True)
class Git:
    """Runs git on one repository, and with `ctx` only as long as the job is not asked to stop."""

    tree: Path
    ctx: Context | None
    lock: int
    """Inherited, so that the workspace stays locked while git lives."""

    def __call__(self, *args: str, at: Path | None = None, scheme: str | None = None) -> str:
        """What git writes to its standard output; raises GitFailed. Only with `scheme` may it leave the host."""
        settings = [*SAFE, f"protocol.{scheme}.allow=always"] if scheme else SAFE
        options = [word for setting in settings for word in ("-c", setting)]
        where = [] if at else [f"--git-dir={self.tree / '.git'}", f"--work-tree={self.tree}"]
        try:
            ended = run_program(
                ["git", *options, *where, *args],
                ctx=self.ctx,
                cwd=at or self.tree,
                env=clean_environment(_environment()),
                keep_open=[self.lock],
                on_line=_progress(self.ctx) if self.ctx else None,
            )
        except FileNotFoundError as exc:
            raise Fail("git is not installed on this host" if exc.filename == "git" else f"{exc}") from exc
        if ended.exit_status != 0:
            reason = _reason(ended.stderr.decode(errors="replace"))
            raise GitFailed(f"git {args[0]} failed: {reason or f'status {ended.exit_status}, signal {ended.signal}'}")
        return ended.stdout.decode(errors="surrogateescape").strip()

    def commit(self, ref: str) -> str | None:
        """The commit that a full name of a ref, or a commit's own, stands for."""
        try:
            return self("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
        except GitFailed:
            return None

    def fetch(self, source: GitSource) -> str:
        """Gets a source into a new repository and checks it out; the commit."""
        scheme = allowed(source.url)
        self("init", "--quiet", "--template=")
        self("config", "remote.origin.url", source.url)
        self("config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*")
        what = [f"+{source.ref or 'HEAD'}:{START}"]
        if source.depth is None:
            what += ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"]
        depth = [] if source.depth is None else [f"--depth={source.depth}"]
        try:
            self("fetch", "--progress", "--no-tags", *depth, "--", "origin", *what, scheme=scheme)
        except GitFailed as exc:
            if any(words in str(exc) for words in _HOPELESS):
                raise Fail(str(exc)) from exc
            raise
        return self.check_out()

    def check_out(self) -> str:
        """Checks out the start, on no branch: a session may want any of them."""
        commit = self.commit(START)
        if commit is None:
            raise Fail("the ref leads to no commit")
        self("checkout", "--progress", "--detach", commit, "--")
        return commit


def allowed(url: str) -> str:
    """The scheme of a URL that the administrator has allowed; raises Fail with what to do."""
    prefixes = read_list(SETTING, EXAMPLE)
    if not prefixes:
        raise Fail(f"no git URL is allowed: set {SETTING} for the daemon, for example to {EXAMPLE}")
    for prefix in prefixes:
        # Without the slash, https://github.com/acme would allow https://github.com/acme-evil and acme.evil.com.
        if not prefix.startswith(tuple(f"{s}://" for s in SCHEMES)) or prefix[-1] != "/":
            raise Fail(f"{SETTING}: each must begin with {'://, '.join(SCHEMES)}:// and end with /")
    if not url.startswith(tuple(prefixes)):
        raise Fail(f"the git URL is not allowed; {SETTING} has {', '.join(map(_shown, prefixes))}")
    _refuse_detours(url)
    return url.partition("://")[0]


def _refuse_detours(url: str) -> None:
    """A server or a file system would take `..` back over the end of the prefix."""
    path = url.partition("://")[2].partition("/")[2]
    encoded = re.search(r"%(2e|2f|5c|25|00|[01][0-9a-f])", path, re.IGNORECASE)
    odd = not url.isprintable() or any(char in url for char in "\\?# ")
    if odd or encoded or any(part in ("", ".", "..") for part in unquote(path).rstrip("/").split("/")):
        raise Fail("the git URL must not contain . or .. or an empty part in its path, nor \\ ? # or a space")
    if urlsplit(url).netloc.rpartition("@")[2].startswith("-"):
        raise Fail("the git URL must not name a host that begins with -")


def _environment() -> dict[str, str]:
    """Of git: no file but the administrator's, no question to anybody."""
    return {
        "HOME": "/nonexistent",  # no .netrc; ssh looks for its keys in the daemon's home all the same
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.environ.get(CONFIG_SETTING) or os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "/bin/false",
        "SSH_ASKPASS": "/bin/false",
        "GIT_SSH_COMMAND": os.environ.get(SSH_SETTING) or "ssh -oBatchMode=yes",
        **{f"GIT_{who}_NAME": "dispatcher" for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_EMAIL": "dispatcher@localhost" for who in ("AUTHOR", "COMMITTER")},
    }


def _progress(ctx: Context) -> Callable[[str, bytes], None]:
    def hear(_: str, line: bytes) -> None:
        if said := _PROGRESS.search(line.decode(errors="replace")):
            begin, end = STEPS[said[1]]
            ctx.progress(begin + (end - begin) * int(said[2]) / 100, f"{said[1].lower()}, {said[2]}%")

    return hear


def _reason(stderr: str) -> str:
    """The line that says most, without credentials that a rewritten URL may have."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", stderr) if line.strip()]
    blamed = [line for line in lines if line.startswith(("fatal:", "error:", "ERROR:"))] or lines[-1:]
    text = blamed[0] if blamed else ""
    return _shown(text.partition(": ")[2] if text.startswith(("fatal:", "error:")) else text)[:500]


def _shown(text: str) -> str:
    return _CREDENTIALS.sub(r"\1\2", text).replace("\0", "")
