"""workspace_init and sessions: from what is allowed and nothing else, once, whole or not at all."""

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from dispatcher_executors import workspace_git, workspace_template
from dispatcher_executors.workspace_git import GitFailed, allowed
from dispatcher_executors.workspace_init import WorkspacePayload
from pydantic import ValidationError

from dispatcher.context import Context, Interrupted
from dispatcher.executor import Fail
from dispatcher.job import CancelReason
from tests.ports import free_port
from tests.unit.workspace_runner import context, run

ME = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"} | {
    f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
}


def git(at: Path, *args: str) -> str:
    done = subprocess.run(["git", *args], cwd=at, env=os.environ | ME, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(at: Path, name: str, content: bytes | str) -> str:
    path = at / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    git(at, "add", "--all")
    git(at, "commit", "--quiet", "--message", name)
    return git(at, "rev-parse", "HEAD")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    monkeypatch.setenv("DISPATCHER_WORKSPACES", str(folder))
    for name in ("DISPATCHER_GIT_URLS", "DISPATCHER_TEMPLATES", "DISPATCHER_GIT_CONFIG", "DISPATCHER_GIT_SSH_COMMAND"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def origin(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with two branches and a tag, which may be cloned."""
    folder = tmp_path / "srv" / "app"
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    commit(folder, "first", "1")
    git(folder, "tag", "v1")
    commit(folder, "second", "2")
    git(folder, "checkout", "--quiet", "-b", "feature/x", "v1")
    commit(folder, "third", "3")
    git(folder, "checkout", "--quiet", "main")
    monkeypatch.setenv("DISPATCHER_GIT_URLS", json.dumps([f"file://{tmp_path}/srv/"]))
    return folder


@pytest.fixture
def templates(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "templates"
    (folder / "web" / "src").mkdir(parents=True)
    (folder / "web" / "src" / "app.py").write_text("print()\n")
    (folder / "web" / "run").write_text("#!/bin/sh\n")
    (folder / "web" / "run").chmod(0o755)
    monkeypatch.setenv("DISPATCHER_TEMPLATES", str(folder))
    return folder


def init(source: Path | str, workspace: str = "ws", *, attempt: int = 1, **options: Any) -> Any:
    return run(workspace_context(source, workspace, attempt=attempt, **options))


def workspace_context(source: Path | str, workspace: str = "ws", *, attempt: int = 1, **options: Any) -> Context:
    url = f"file://{source}" if isinstance(source, Path) else source
    return context("workspace_init", {"workspace": workspace, "git": {"url": url, **options}}, attempt=attempt)


def from_template(template: str, workspace: str = "ws") -> Any:
    return run(context("workspace_init", {"workspace": workspace, "template": template}))


def session(name: str = "s", workspace: str = "ws", **options: Any) -> Any:
    return run(context("session_init", {"workspace": workspace, "session": name, **options}))


def remove(name: str = "s", workspace: str = "ws", **options: Any) -> Any:
    return run(context("session_remove", {"workspace": workspace, "session": name, **options}))


def left(root: Path) -> set[str]:
    """What lies in the root, of the hidden folders only what is in them."""
    staging = root / ".staging"
    return {path.name for path in root.iterdir() if path.name not in (".staging", ".locks")} | {
        f".staging/{path.name}" for path in (staging.iterdir() if staging.exists() else ())
    }


# What a workspace is


def test_workspace_is_made_once_and_found_again(origin: Path, root: Path) -> None:
    first = init(origin)
    assert first.pop("seconds") >= 0
    tree = root / "ws" / "tree"
    head = git(origin, "rev-parse", "HEAD")
    assert first == {"workspace": "ws", "path": str(tree), "commit": head, "created": True}
    assert {path.name for path in tree.iterdir()} == {".git", "first", "second"}
    (tree / "work").write_text("kept")
    commit(origin, "later", "x")
    again = init(origin)
    assert (again["created"], again["commit"]) == (False, head)
    assert (tree / "work").read_text() == "kept"
    assert left(root) == {"ws"}


def test_moved_repository_knows_nothing_of_where_it_was_made(origin: Path, root: Path) -> None:
    tree = Path(init(origin)["path"])
    assert git(tree, "status", "--porcelain") == ""
    assert ".staging" not in (tree / ".git" / "config").read_text()


@pytest.mark.parametrize(("ref", "files"), [("feature/x", {"first", "third"}), ("v1", {"first"})])
@pytest.mark.parametrize("depth", [None, 1])
def test_ref_is_a_branch_or_a_tag(origin: Path, ref: str, files: set[str], depth: int | None) -> None:
    tree = Path(init(origin, ref=ref, depth=depth)["path"])
    assert {path.name for path in tree.iterdir()} - {".git"} == files
    assert git(tree, "rev-list", "--count", "HEAD") == ("1" if depth else str(len(files)))


def test_ref_is_a_commit_that_no_branch_ends_in(origin: Path) -> None:
    first = git(origin, "rev-parse", "v1")
    assert init(origin, ref=first)["commit"] == first


def test_ref_that_is_missing_fails_for_good_and_leaves_nothing(origin: Path, root: Path) -> None:
    with pytest.raises(Fail, match="couldn't find remote ref nothing"):
        init(origin, ref="nothing")
    assert left(root) == set()


def test_name_that_is_taken_by_another_source_is_refused(origin: Path, templates: Path) -> None:
    init(origin)
    with pytest.raises(Fail, match="'ws' is there already, made from something else"):
        init(origin, ref="v1")
    with pytest.raises(Fail, match="made from something else"):
        from_template("web")


@pytest.mark.parametrize("tenant", [None, "them"])
def test_workspace_of_another_tenant_is_not_touched_or_told_of(origin: Path, root: Path, tenant: str | None) -> None:
    source = {"url": f"file://{origin}"}
    run(context("workspace_init", {"workspace": "ws", "git": source}, tenant="we"))
    run(context("session_init", {"workspace": "ws", "session": "s"}, tenant="we"))
    (root / "ws" / "sessions" / "s" / "work").write_text("theirs")
    jobs: list[tuple[str, dict[str, Any]]] = [
        ("workspace_init", {"git": source}),
        ("workspace_init", {"git": source | {"ref": "v1"}}),
        ("session_init", {"session": "s"}),
        ("session_init", {"session": "mine"}),
        ("session_remove", {"session": "s", "force": True}),
    ]
    for type, payload in jobs:
        with pytest.raises(Fail, match=r"^workspace 'ws' belongs to another tenant: choose another name$"):
            run(context(type, {"workspace": "ws", **payload}, tenant=tenant))
    assert (root / "ws" / "sessions" / "s" / "work").read_text() == "theirs"


@pytest.mark.parametrize("branch", ["session/a/below", "session", "HEAD", "x.lock/y"])
def test_branch_that_cannot_be_made_fails_for_good_and_leaves_the_name_free(
    origin: Path, root: Path, branch: str
) -> None:
    init(origin)
    session("a")
    with pytest.raises(Fail, match="branch"):
        session("b", branch=branch)
    assert {path.name for path in (root / "ws" / "sessions").iterdir()} == {".a.json", "a"}
    assert session("b")["created"]


def test_names_that_are_one_on_some_file_systems_are_refused(origin: Path) -> None:
    init(origin, "Shop")
    with pytest.raises(Fail, match="'Shop' is there already, and differs from 'shop' only in"):
        init(origin, "shop")


def test_folder_of_somebody_else_is_left_alone(origin: Path, root: Path) -> None:
    (root / "ws").mkdir()
    (root / "ws" / "file").write_text("mine")
    with pytest.raises(Fail, match=r"is no workspace: it has no workspace\.json; move it away"):
        init(origin)
    assert (root / "ws" / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".git", "-x", "a/b", "a\\b", "../a", "a" * 101, "a.lock", "a.", "a..b", "é", "a\n", "a b"]
)
def test_name_that_could_mean_another_place_is_refused(name: str) -> None:
    for payload in ({"workspace": name, "template": "t"}, {"workspace": "ws", "template": name}):
        with pytest.raises(ValidationError) as caught:
            WorkspacePayload.model_validate(payload)
        assert caught.value.error_count() == 1 or name == "a/b"
        if name == "a/b":
            break  # a template may lie in a folder
    with pytest.raises(ValidationError):
        context("session_init", {"workspace": "ws", "session": name})


@pytest.mark.parametrize(
    "ref",
    [
        "--upload-pack=id",
        "-x",
        "+a",
        "a:b",
        "a..b",
        "a b",
        "a~1",
        "@{u}",
        "a@{1}",
        "",
        "/a",
        "a/",
        "a\nb",
        "a.lock",
        "*",
    ],
)
def test_ref_that_git_could_take_for_more_is_refused(ref: str) -> None:
    with pytest.raises(ValidationError):
        WorkspacePayload.model_validate({"workspace": "ws", "git": {"url": "https://h/x", "ref": ref}})
    for key in ("ref", "branch"):
        with pytest.raises(ValidationError):
            context("session_init", {"workspace": "ws", "session": "s", key: ref})


def test_either_git_or_a_template_is_asked_for() -> None:
    for sources in ({}, {"git": {"url": "https://h/x"}, "template": "t"}):
        with pytest.raises(ValidationError, match="give either git or template"):
            WorkspacePayload.model_validate({"workspace": "ws", **sources})


# What is allowed


def test_all_is_off_until_it_is_set(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Fail, match="no git URL is allowed: set DISPATCHER_GIT_URLS"):
        init("https://github.com/acme/app")
    with pytest.raises(Fail, match="templates are off: set DISPATCHER_TEMPLATES"):
        from_template("web")
    monkeypatch.delenv("DISPATCHER_WORKSPACES")
    for attempt in (init, from_template, session):
        with pytest.raises(Fail, match="workspaces are off: set DISPATCHER_WORKSPACES"):
            attempt("https://github.com/acme/app" if attempt is init else "web")
    monkeypatch.setenv("DISPATCHER_WORKSPACES", "relative")
    with pytest.raises(Fail, match="DISPATCHER_WORKSPACES must be the absolute path of a folder"):
        session()


@pytest.mark.parametrize(
    "url",
    [
        "https://github.com/acme-evil/x",
        "https://github.com/acme",
        "https://github.com.evil.com/acme/x",
        "http://github.com/acme/x",
        "HTTPS://github.com/acme/x",
        "https://github.com/acme/../evil/x",
        "https://github.com/acme/%2e%2E/evil/x",
        "https://github.com/acme/.%2e/evil/x",
        "https://github.com/acme/x%2f..%2f..",
        "https://github.com/acme/%252e%252e/evil",
        "https://github.com/acme//evil",
        "https://github.com/acme/x?service=evil",
        "https://github.com/acme/x#y",
        "https://github.com/acme/x\\..\\..",
        "https://github.com/acme/x\ny",
        "https://github.com/acme/.",
        "ext::sh -c id",
        "file:///srv/git/x",
        "/srv/git/x",
        "git@git.local:x",
        "ssh://-oProxyCommand=id/x",
        "ssh://git@git.local-evil/x",
        "--upload-pack=id",
        "",
    ],
)
def test_url_that_is_not_allowed_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("DISPATCHER_GIT_URLS", "https://github.com/acme/, ssh://git@git.local/")
    with pytest.raises(Fail, match=r"git URL (is not allowed|must not contain)"):
        allowed(url)
    with pytest.raises(Fail, match=r"git URL (is not allowed|must not contain)"):
        init(url)
    assert left(root) == set()


@pytest.mark.parametrize(
    "url", ["https://github.com/acme/x.git", "ssh://git@git.local/~me/a%20b", "https://github.com/acme/a/b/"]
)
def test_url_below_a_prefix_is_allowed(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("DISPATCHER_GIT_URLS", '["https://github.com/acme/", "ssh://git@git.local/"]')
    assert url.startswith(allowed(url) + "://")


@pytest.mark.parametrize("setting", ["https://github.com/acme", "ext::sh", "[1]", "[", "github.com/", '["/srv/"]'])
def test_setting_that_would_allow_more_than_it_seems_is_refused(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setenv("DISPATCHER_GIT_URLS", setting)
    with pytest.raises(Fail, match="DISPATCHER_GIT_URLS"):
        allowed("https://github.com/acme-evil/x")


@pytest.mark.parametrize(
    "url", ["https://me:secret@h/x", "https://secret@h/x", "ssh://git:secret@h/x", "https://a:secret@b@h/x"]
)
def test_password_in_a_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ValidationError) as caught:
        WorkspacePayload.model_validate({"workspace": "ws", "git": {"url": url}})
    found = caught.value.errors(include_input=False, include_context=False)
    assert "must not contain a user or password" in str(found)
    assert "secret" not in str(found)


def test_password_that_the_administrators_file_adds_is_not_shown(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens
        at = f"127.0.0.1:{closed.getsockname()[1]}"
        config = tmp_path / "gitconfig"
        config.write_text(f'[url "http://me:secret@{at}/"]\n insteadOf = "http://{at}/"\n')
        monkeypatch.setenv("DISPATCHER_GIT_CONFIG", str(config))
        monkeypatch.setenv("DISPATCHER_GIT_URLS", f"http://{at}/")
        with pytest.raises(GitFailed) as caught:
            init(f"http://{at}/x")
    assert "git fetch failed: unable to access" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert workspace_git._shown("x https://me:se:cr@et@h/y") == "x https://h/y"
    assert left(root) == set()


def test_redirect_to_where_nobody_allowed_is_not_followed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Redirecting(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(302)
            self.send_header("Location", self.path.replace("/open/", "/inside/"))
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Not to the tests' output."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirecting)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/open/"
        monkeypatch.setenv("DISPATCHER_GIT_URLS", url)
        with pytest.raises(GitFailed, match="git fetch failed"):
            init(url + "x")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert len(asked) == 1


def test_administrators_file_cannot_undo_what_keeps_git_safe(
    origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the daemon's own environment reach git."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "post-checkout").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (hooks / "post-checkout").chmod(0o755)
    config = tmp_path / "gitconfig"
    config.write_text(
        f"[core]\n hooksPath = {hooks}\n fsmonitor = {hooks}/post-checkout\n[protocol]\n allow = always\n"
    )
    monkeypatch.setenv("DISPATCHER_GIT_CONFIG", str(config))
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    init(origin)
    session()
    remove()
    assert not (tmp_path / "ran").exists()


def test_submodule_is_not_fetched(origin: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "--quiet")
    commit(other, "file", "x")
    git(origin, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", f"file://{other}", "sub")
    git(origin, "commit", "--quiet", "--message", "sub")
    tree = Path(init(origin)["path"])
    assert list((tree / "sub").iterdir()) == []


@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside", "sub/../../x", ".git/config", "other"])
def test_link_in_a_repository_that_leads_out_is_refused(origin: Path, root: Path, target: str) -> None:
    if target == "other":  # by way of another link
        (origin / "other").symlink_to("sub/../..")
    (origin / "link").symlink_to(target)
    commit(origin, "sub/file", "x")
    with pytest.raises(Fail, match=r"a symbolic link leads out of the folder: '(link|other)'"):
        init(origin)
    assert left(root) == set()


def test_link_that_stays_inside_is_kept_and_one_of_another_branch_is_refused_there(origin: Path, root: Path) -> None:
    (origin / "sub").mkdir()
    (origin / "sub" / "link").symlink_to("../first")
    git(origin, "add", "--all")
    git(origin, "commit", "--quiet", "--message", "link")
    git(origin, "checkout", "--quiet", "-b", "evil")
    (origin / "bad").symlink_to("/etc/passwd")
    commit(origin, "fourth", "x")
    git(origin, "checkout", "--quiet", "main")
    tree = Path(init(origin)["path"])
    assert (tree / "sub" / "link").read_text() == "1"
    with pytest.raises(Fail, match="leads out"):
        session(ref="evil")
    assert list((root / "ws" / "sessions").iterdir()) == []
    assert git(tree, "branch", "--list", "session/*") == ""


def test_real_server_is_cloned_from(origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    command = ["git", "daemon", "--listen=127.0.0.1", f"--port={port}", f"--base-path={origin.parent}", "--export-all"]
    server = subprocess.Popen([*command, "--reuseaddr"], stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 20
        while not listens(port):
            assert time.monotonic() < deadline
            time.sleep(0.01)  # nothing tells when it does
        monkeypatch.setenv("DISPATCHER_GIT_URLS", f"git://127.0.0.1:{port}/")
        assert init(f"git://127.0.0.1:{port}/app", depth=1)["created"]
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# Templates


def test_template_becomes_a_workspace_of_one_commit(templates: Path, root: Path) -> None:
    (templates / "web" / ".gitignore").write_text("run\n")  # what a template has is meant
    (templates / "web" / "link").symlink_to("src/app.py")
    tree = Path(from_template("web")["path"])
    assert (tree / "src" / "app.py").read_text() == "print()\n"
    assert os.access(tree / "run", os.X_OK)
    assert git(tree, "ls-files").splitlines() == [".gitignore", "link", "run", "src/app.py"]
    assert git(tree, "rev-list", "--count", "HEAD") == "1"
    place = Path(session()["path"])
    assert (place / "link").read_text() == "print()\n"
    assert not from_template("web")["created"]


def make_fifo(at: Path) -> None:
    os.mkfifo(at / "fifo")


def make_socket(at: Path) -> None:
    here = Path.cwd()
    os.chdir(at)  # the path of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("socket")
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda at: (at / "x").symlink_to("/etc/passwd"), "leads out of the folder: 'x'"),
        (lambda at: (at / "src" / "x").symlink_to("../../../secret"), "leads out of the folder: 'src/x'"),
        (lambda at: (at / "x").symlink_to("/etc"), "leads out of the folder: 'x'"),
        (make_fifo, "neither file, folder nor link: 'fifo'"),
        (make_socket, "neither file, folder nor link: 'socket'"),
        (lambda at: (at / "src" / ".Git").mkdir(), "contains a repository"),
    ],
)
def test_template_with_a_surprise_is_refused_and_leaves_nothing(
    templates: Path, root: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(templates / "web")
    with pytest.raises(Fail, match=reason):
        from_template("web")
    assert left(root) == set()


@pytest.mark.parametrize("template", ["missing", "web/run", "linked", "linked/web"])
def test_template_that_is_none_is_refused(templates: Path, template: str) -> None:
    (templates.parent / "secret").mkdir()
    (templates / "linked").symlink_to(templates.parent)
    with pytest.raises(Fail, match=f"there is no template {template!r}"):
        from_template(template)


def test_template_larger_than_the_bounds_is_refused(
    templates: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace_template, "MAX_FILES", 2)
    with pytest.raises(Fail, match="more than 2 files"):
        from_template("web")
    monkeypatch.setattr(workspace_template, "MAX_FILES", 10)
    monkeypatch.setattr(workspace_template, "MAX_BYTES", 10)
    with pytest.raises(Fail, match="more than 10 bytes"):
        from_template("web")
    assert left(root) == set()


def test_read_only_folders_of_a_template_can_be_removed_again(templates: Path, root: Path) -> None:
    (templates / "web" / "src").chmod(0o555)
    os.mkfifo(templates / "web" / "zz")
    try:
        with pytest.raises(Fail, match="neither"):
            from_template("web")
    finally:
        (templates / "web" / "src").chmod(0o755)
    assert left(root) == set()


# Crashes, cancels, several at once


def test_cancel_in_the_middle_of_a_copy_leaves_nothing(templates: Path, root: Path) -> None:
    ctx = context("workspace_init", {"workspace": "ws", "template": "web"})
    runtime: Any = ctx._runtime
    reported = runtime.report_progress

    def cancel(*progress: Any) -> None:
        assert any((root / ".staging" / "ws" / "7-1" / "tree").iterdir())
        ctx.cancel(CancelReason.REQUESTED)
        reported(*progress)

    runtime.report_progress = cancel
    with pytest.raises(Interrupted):
        run(ctx)
    assert "files copied" in runtime.progress[-1][1]
    assert left(root) == set()


@pytest.fixture
def slow(origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Slow"]:
    commit(origin, "large", os.urandom(4_000_000))
    slow = Slow(tmp_path, origin)
    monkeypatch.setenv("DISPATCHER_GIT_SSH_COMMAND", str(slow.script))
    monkeypatch.setenv("DISPATCHER_GIT_URLS", "ssh://git.local/")
    yield slow
    slow.quick()


class Slow:
    """A server that stops in the middle of the pack, until it is told to be quick."""

    def __init__(self, folder: Path, origin: Path) -> None:
        self.url = f"ssh://git.local{origin}"
        self.script = folder / "ssh"
        self._reached = folder / "reached"
        self._quick = folder / "quick"
        os.mkfifo(self._reached)
        self.script.write_text(
            "#!/bin/sh\n"
            "while [ $# -gt 1 ]; do shift; done\n"
            f'if [ -e {self._quick} ]; then eval "exec $1"; fi\n'
            # Not head, which would keep what it has read until it has all.
            'eval "$1" | (dd bs=4096 count=1000000 iflag=count_bytes status=none; '
            f"echo $$ > {self._reached}; exec sleep 100)\n"
        )
        self.script.chmod(0o755)

    def reached(self) -> int:
        """Waits until a clone is in the middle; the number of a process of its."""
        return int(self._reached.read_text())

    def quick(self) -> None:
        """From now on the server does not stop."""
        self._quick.touch()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_cancel_in_the_middle_of_a_clone_kills_git_and_leaves_nothing(slow: Slow, root: Path) -> None:
    ctx = workspace_context(slow.url)
    pids: list[int] = []

    def cancel() -> None:
        pids.append(slow.reached())
        ctx.cancel(CancelReason.REQUESTED)

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(Interrupted):
        run(ctx)
    thread.join()
    assert not alive(pids[0])
    assert left(root) == set()


def test_clone_killed_in_the_middle_is_made_anew_by_the_next_try(slow: Slow, root: Path) -> None:
    payload = {"workspace": "ws", "git": {"url": slow.url}}
    runner = start("workspace_init", payload, 1)
    pid = slow.reached()
    kill(runner)
    assert left(root) == {".staging/ws"}
    assert {path.name for path in (root / ".staging" / "ws").iterdir()} == {"7-1"}
    slow.quick()
    # It waits until all that the dead attempt has started are gone: they may still write.
    result = run(context("workspace_init", payload, attempt=2))
    assert not alive(pid)
    assert result["created"]
    assert left(root) == {"ws"}
    assert git(Path(result["path"]), "fsck", "--full") == ""


def test_workspace_stays_locked_while_a_dead_attempts_git_lives(slow: Slow, root: Path) -> None:
    """It may still write, and what is removed under its hands would come back."""
    runner = start("workspace_init", {"workspace": "ws", "git": {"url": slow.url}}, 1)
    supervisor = parent(slow.reached())
    while b"supervisor.py" not in Path(f"/proc/{supervisor}/cmdline").read_bytes():
        supervisor = parent(supervisor)
    os.kill(supervisor, signal.SIGSTOP)
    try:
        kill(runner)
        slow.quick()
        ctx = workspace_context(slow.url, attempt=2)
        runtime: Any = ctx._runtime
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(run, ctx)
            assert runtime.waiting.wait(20)
            assert left(root) == {".staging/ws"}
            os.kill(supervisor, signal.SIGCONT)
            assert waiting.result(20)["created"]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(supervisor, signal.SIGCONT)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def kill(runner: "subprocess.Popen[str]") -> None:
    runner.kill()
    runner.communicate()


def start(type: str, payload: dict[str, Any], attempt: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.unit.workspace_runner", type, json.dumps(payload), str(attempt)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_that_make_the_same_workspace_make_it_once(slow: Slow, root: Path) -> None:
    first = workspace_context(slow.url)
    second = workspace_context(slow.url, attempt=9)
    with ThreadPoolExecutor(2) as pool:
        held = pool.submit(run, first)
        slow.reached()
        waiting = pool.submit(run, second)
        runtime: Any = second._runtime
        assert runtime.waiting.wait(20)
        third = start("workspace_init", {"workspace": "ws", "git": {"url": slow.url}}, 3)
        slow.quick()
        first.cancel(CancelReason.SHUTDOWN)
        with pytest.raises(Interrupted):
            held.result()
        answers = [waiting.result(), json.loads(third.communicate()[0])]
    assert sorted(answer["created"] for answer in answers) == [False, True]
    assert left(root) == {"ws"}


def test_wait_for_the_lock_ends_with_a_cancel(slow: Slow) -> None:
    first, second = workspace_context(slow.url), workspace_context(slow.url, attempt=2)
    with ThreadPoolExecutor(2) as pool:
        held = pool.submit(run, first)
        slow.reached()
        waiting = pool.submit(run, second)
        runtime: Any = second._runtime
        assert runtime.waiting.wait(20)
        second.cancel(CancelReason.TIMEOUT)
        with pytest.raises(Interrupted):
            waiting.result(20)
        first.cancel(CancelReason.REQUESTED)
        with pytest.raises(Interrupted):
            held.result(20)


def test_progress_is_that_of_the_clone(slow: Slow) -> None:
    slow.quick()
    ctx = workspace_context(slow.url)
    run(ctx)
    runtime: Any = ctx._runtime
    percents = [percent for percent, _ in runtime.progress]
    assert percents == sorted(percents)
    assert any(message and message.startswith("receiving objects, ") for _, message in runtime.progress)
    assert percents[-1] == 100


# Sessions


def test_session_is_refused_until_its_workspace_is_ready(slow: Slow, root: Path) -> None:
    with pytest.raises(
        Fail, match="there is no workspace 'ws' on this host: enqueue this job `after` its workspace_init"
    ):
        session()
    slow.quick()
    init(slow.url)
    assert session()["created"]


def test_session_works_on_a_branch_of_its_own(origin: Path, root: Path) -> None:
    init(origin)
    result = session("one", ref="feature/x")
    assert result.pop("seconds") >= 0
    place = root / "ws" / "sessions" / "one"
    head = git(origin, "rev-parse", "feature/x")
    assert result == {
        "workspace": "ws",
        "session": "one",
        "path": str(place),
        "branch": "session/one",
        "commit": head,
        "created": True,
    }
    assert {path.name for path in place.iterdir()} == {".git", "first", "third"}
    assert git(place, "symbolic-ref", "HEAD") == "refs/heads/session/one"
    commit(place, "work", "x")
    assert not session("one", ref="feature/x")["created"]
    assert (place / "work").exists()
    with pytest.raises(Fail, match="'one' is there already, from 'feature/x' on branch 'session/one'"):
        session("one", ref="v1")
    assert session("two", branch="topic", ref=head[:12])["branch"] == "topic"
    with pytest.raises(Fail, match="branch 'topic' is there already"):
        session("three", branch="topic")
    with pytest.raises(Fail, match="has no branch, tag or commit 'nothing'"):
        session("four", ref="nothing")
    assert {path.name for path in place.parent.iterdir()} == {"one", "two", ".one.json", ".two.json"}


def test_many_sessions_at_once_are_all_made(origin: Path) -> None:
    init(origin)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(session, [f"s{number}" for number in range(8)]))
    assert all(result["created"] for result in results)


@pytest.fixture
def stopping(origin: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A FIFO that is opened when a checkout is in the middle, where it then stays: a filter that waits."""
    (origin / ".gitattributes").write_text("wait filter=wait\n")
    commit(origin, "wait", "x")
    init(origin)
    fifo = tmp_path / "here"
    os.mkfifo(fifo)
    config = tmp_path / "gitconfig"
    config.write_text(f'[filter "wait"]\n smudge = "echo > {fifo}; sleep 100"\n')
    monkeypatch.setenv("DISPATCHER_GIT_CONFIG", str(config))
    return fifo


def test_cancel_removes_a_half_made_session_and_its_branch(
    stopping: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = context("session_init", {"workspace": "ws", "session": "s"})

    def cancel() -> None:
        stopping.read_text()
        assert (root / "ws" / "sessions" / "s" / "first").exists()
        ctx.cancel(CancelReason.REQUESTED)

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(Interrupted):
        run(ctx)
    thread.join()
    assert_no_session(root)


def assert_no_session(root: Path) -> None:
    tree = root / "ws" / "tree"
    assert list((root / "ws" / "sessions").iterdir()) == []
    assert git(tree, "branch", "--list", "session/*") == ""
    assert len(git(tree, "worktree", "list").splitlines()) == 1


def test_session_killed_in_the_middle_is_made_anew_by_the_next_try(
    stopping: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = {"workspace": "ws", "session": "s"}
    runner = start("session_init", payload, 1)
    stopping.read_text()
    kill(runner)
    place = root / "ws" / "sessions" / "s"
    assert (place / "first").exists()
    monkeypatch.delenv("DISPATCHER_GIT_CONFIG")
    result = run(context("session_init", payload, attempt=2))
    assert result["created"]
    assert git(place, "status", "--porcelain") == ""
    assert len(git(place, "worktree", "list").splitlines()) == 2


def test_removal_of_a_half_made_session_clears_it_away(
    stopping: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = start("session_init", {"workspace": "ws", "session": "s"}, 1)
    stopping.read_text()
    kill(runner)
    assert not remove()["removed"]
    assert_no_session(root)


def test_removal_that_died_half_way_is_ended_by_the_next_try(origin: Path, root: Path) -> None:
    """With what a killed git leaves: a worktree without its .git, locked, and the lock of its branch."""
    init(origin)
    place = Path(session()["path"])
    git(place, "worktree", "lock", ".")
    note = place.parent / ".s.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"ready": False}))
    (place / ".git").unlink()
    (root / "ws" / "tree" / ".git" / "refs" / "heads" / "session" / "s.lock").touch()
    assert not remove()["removed"]
    assert_no_session(root)
    assert session()["created"]


def test_removal_of_a_session_that_nobody_used_leaves_nothing(origin: Path, root: Path) -> None:
    init(origin)
    session()
    assert remove() == {"workspace": "ws", "session": "s", "removed": True, "branch_kept": None}
    assert_no_session(root)
    assert not remove()["removed"]
    assert not remove(workspace="never")["removed"]


def test_removal_that_would_lose_work_is_refused(origin: Path, root: Path) -> None:
    init(origin)
    place = Path(session()["path"])
    (place / "new").write_text("x")
    with pytest.raises(Fail, match="has changes that are not committed"):
        remove()
    commit(place, "new", "x")
    git(place, "checkout", "--quiet", "--detach")
    commit(place, "newer", "x")
    with pytest.raises(Fail, match="has commits that are on no branch"):
        remove()
    git(place, "checkout", "--quiet", "session/s")
    git(place, "worktree", "lock", ".")
    with pytest.raises(Fail, match="is in use: it was locked"):
        remove()
    assert (place / "new").exists()
    git(place, "worktree", "unlock", ".")
    assert remove()["branch_kept"] == "session/s"
    assert not place.exists()
    assert git(root / "ws" / "tree", "show", "session/s:new") == "x"


def test_removal_by_force_takes_all_but_commits(origin: Path, root: Path) -> None:
    init(origin)
    place = Path(session()["path"])
    (place / "new").write_text("x")
    git(place, "worktree", "lock", ".")
    assert remove(force=True)["removed"]
    assert_no_session(root)


def test_folder_removed_by_hand_is_told_and_can_be_cleared_away(origin: Path, root: Path) -> None:
    init(origin)
    place = Path(session()["path"])
    for path in place.iterdir():
        path.unlink()
    place.rmdir()
    with pytest.raises(Fail, match="was removed by hand: enqueue session_remove first"):
        session()
    assert remove()["removed"]
    assert session()["created"]


def test_folder_that_is_no_session_is_left_alone(origin: Path, root: Path) -> None:
    init(origin)
    mine = root / "ws" / "sessions" / "s"
    mine.mkdir()
    with pytest.raises(Fail, match="is no session: move it away"):
        session()
    with pytest.raises(Fail, match="is no session: move it away"):
        remove()
    assert mine.is_dir()
