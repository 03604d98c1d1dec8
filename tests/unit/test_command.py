"""command: runs what is allowed and nothing else, and says how it ended."""

import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from dispatcher_executors.command import CommandFailed, CommandPayload, command
from pydantic import ValidationError

from dispatcher.context import Context, Interrupted
from dispatcher.executor import Fail, Registry, Snooze
from dispatcher.job import CancelReason, Job


class Silent:
    """A runtime that only listens."""

    def __init__(self) -> None:
        self.progress: list[tuple[float, str | None]] = []

    def report_progress(self, job_id: int, attempt: int, percent: float, message: str | None) -> None:
        self.progress.append((percent, message))


@pytest.fixture
def allow(monkeypatch: pytest.MonkeyPatch) -> Any:
    def allow(**programs: Any) -> None:
        monkeypatch.setenv("DISPATCHER_COMMANDS", json.dumps(programs))

    return allow


def context(**payload: Any) -> Context:
    job = Job(7, "command", None, CommandPayload.model_validate(payload), 0, 3, 0, datetime.now(UTC))
    return Context(job, timeout_s=None, runtime=Silent())  # type: ignore[arg-type]


def run(ctx: Context | None = None, **payload: Any) -> Any:
    ctx = ctx or context(**payload)
    return command(ctx.job, ctx)


def test_result_has_status_output_and_duration(allow: Any) -> None:
    allow(shell=["/bin/sh", "-c"])
    result = run(program="shell", args=["cat; echo warn >&2"], stdin="né\n")
    assert result.pop("duration_s") >= 0
    assert result == {
        "exit_status": 0,
        "stdout": "né\n",
        "stderr": "warn\n",
        "stdout_truncated": False,
        "stderr_truncated": False,
    }


@pytest.mark.parametrize("odd", ["; rm -rf /", "$(touch pwned)", "`id`", "a\nb", "", "*", "-n", "' \" \\", "&& id"])
def test_arguments_reach_the_program_as_they_are(allow: Any, odd: str) -> None:
    allow(show=["/usr/bin/printf", "<%s>"])
    assert run(program="show", args=[odd, "end"])["stdout"] == f"<{odd}><end>"


@pytest.mark.parametrize(
    "payload",
    [
        {"args": ["a\0b"]},
        {"args": ["\ud800"]},
        {"args": "one"},
        {"env": {"JOB_X": "a\0b"}},
        {"env": {"LD_PRELOAD": "/tmp/x.so"}},
        {"env": {"PATH": "/tmp"}},
        {"env": {"JOB_X=Y": "1"}},
        {"cwd": "/"},
        {"shell": True},
    ],
)
def test_payload_that_could_mean_something_else_is_refused(payload: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CommandPayload.model_validate({"program": "p", **payload})


def test_nothing_is_allowed_until_the_setting_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPATCHER_COMMANDS", raising=False)
    with pytest.raises(Fail, match=r"no program is allowed: set DISPATCHER_COMMANDS .* to \{"):
        run(program="/bin/sh", args=["-c", "id"])


@pytest.mark.parametrize("name", ["/bin/echo", "sh", "../echo", "", "ECHO"])
def test_only_names_on_the_list_run(allow: Any, name: str) -> None:
    allow(echo="/bin/echo", ls="/bin/ls")
    with pytest.raises(Fail, match="is not allowed; DISPATCHER_COMMANDS has echo, ls"):
        run(program=name)


@pytest.mark.parametrize(
    "setting",
    [
        "{",
        "[]",
        '"x"',
        '{"a": 1}',
        '{"a": {"argv": ["/bin/sh"], "shell": true}}',
        '{"a": {"argv": ["/bin/sh"], "timeout_s": 0}}',
    ],
)
def test_broken_setting_is_named(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setenv("DISPATCHER_COMMANDS", setting)
    with pytest.raises(Fail, match="DISPATCHER_COMMANDS must be a JSON object"):
        run(program="a")


@pytest.mark.parametrize("entry", ["echo", "./echo", [], ["sh", "-c"]])
def test_relative_path_in_the_setting_is_refused(allow: Any, entry: str | list[str]) -> None:
    allow(a=entry)
    with pytest.raises(Fail, match="needs an absolute path"):
        run(program="a")


@pytest.mark.parametrize(
    ("path", "reason"), [("/no/such", "No such file or directory"), ("/etc/passwd", "Permission denied")]
)
def test_program_that_cannot_be_started_fails_for_good_in_one_line(allow: Any, path: str, reason: str) -> None:
    allow(a=path)
    with pytest.raises(Fail) as caught:
        run(program="a")
    assert str(caught.value) == f"a cannot be started: {path}: {reason}"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 3", "shell exited with status 3"),
        ("echo a >&2; echo 'the reason ' >&2; exit 1", "shell exited with status 1: the reason"),
        ("kill -KILL $$", "shell was killed by SIGKILL"),
        ("kill -40 $$", "shell was killed by signal 40"),
    ],
)
def test_failure_says_how_it_ended_with_the_last_line_of_errors(allow: Any, script: str, message: str) -> None:
    allow(shell=["/bin/sh", "-c"])
    with pytest.raises(CommandFailed) as caught:
        run(program="shell", args=[script])
    assert str(caught.value) == message


def test_output_that_postgresql_cannot_store_is_made_storable(allow: Any) -> None:
    allow(shell=["/bin/sh", "-c"])
    result = run(program="shell", args=["printf 'a\\000b\\377c'"])
    assert result["stdout"] == "a\ufffdb\ufffdc"


def test_environment_is_clean_and_names_the_attempt(allow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "secret")
    monkeypatch.setenv("DISPATCHER_DSN", "postgresql://u:secret@h/d")
    allow(env="/usr/bin/env")
    output = run(program="env", env={"JOB_DAY": "2013-01-01", "JOB_ID": "forged"})["stdout"]
    variables = dict(line.split("=", 1) for line in output.splitlines())
    assert variables["JOB_ID"] == "7"
    assert variables["JOB_ATTEMPT"] == "3"
    assert variables["JOB_DAY"] == "2013-01-01"
    assert set(variables) == {"PATH", "LANG", "HOME", "TMPDIR", "JOB_ID", "JOB_ATTEMPT", "JOB_RESULT", "JOB_DAY"}


def test_program_runs_in_an_empty_folder_that_is_removed(allow: Any) -> None:
    allow(shell=["/bin/sh", "-c"])
    folder = run(program="shell", args=["ls -A; mkdir sub; touch sub/file; chmod 0 sub; pwd"])["stdout"].strip()
    assert folder.startswith("/")
    assert not Path(folder).exists()


def test_cancel_ends_the_program(allow: Any, tmp_path: Path) -> None:
    allow(shell=["/bin/sh", "-c"])
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    ctx = context(program="shell", args=[f"echo > {fifo}; exec sleep 100"])

    def cancel() -> None:
        fifo.read_bytes()
        ctx.cancel(CancelReason.REQUESTED)

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(Interrupted):
        run(ctx)
    thread.join()


def test_progress_is_heard_while_the_program_runs(allow: Any) -> None:
    allow(shell=["/bin/sh", "-c"])
    lines = [
        "::progress 20 é",
        "::progress 55.5%",
        "::progress x",
        " ::progress 60",
        "::progress 100 done",
        "::progress 1000",
    ]
    ctx = context(program="shell", args=["cat; echo ::progress 99 >&2"], stdin="\n".join(lines))
    result = run(ctx)
    runtime: Any = ctx._runtime
    assert runtime.progress == [(0, "shell runs"), (20, "é"), (55.5, None), (100, "done")]
    assert "::progress 20" in result["stdout"]


def test_json_that_the_program_leaves_is_in_the_result(allow: Any) -> None:
    allow(shell=["/bin/sh", "-c"])
    result = run(program="shell", args=["""printf '{"pages": [1, "é"]}' > "$JOB_RESULT"; echo text"""])
    assert result["result"] == {"pages": [1, "é"]}
    assert result["stdout"] == "text\n"
    assert run(program="shell", args=["echo null > $JOB_RESULT"])["result"] is None


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo '{' > $JOB_RESULT", "is no JSON: Expecting property name"),
        ("printf '\\377' > $JOB_RESULT", "is no JSON"),
        ("echo '[NaN]' > $JOB_RESULT", "is no JSON: NaN is none of its values"),
        ("head -c 1048577 /dev/zero > $JOB_RESULT", "is larger than 1048576 bytes"),
        ("ln -s /etc/hostname $JOB_RESULT", "cannot be read"),
        ("mkfifo $JOB_RESULT", "no regular file"),
        ("mkdir $JOB_RESULT", "no regular file"),
        ("yes '[' | head -100000 > $JOB_RESULT", "is no JSON"),
    ],
)
def test_result_that_is_none_fails_in_one_line_and_reads_nobodys_file(allow: Any, script: str, reason: str) -> None:
    allow(shell=["/bin/sh", "-c"])
    with pytest.raises(Fail, match=f"the result of shell.* {reason}"):
        run(program="shell", args=[script])


def test_exit_statuses_mean_what_the_administrator_says(allow: Any) -> None:
    allow(shell={"argv": ["/bin/sh", "-c"], "fail_on": [2], "snooze_on": [75], "snooze_s": 5})
    with pytest.raises(Fail, match="shell exited with status 2: wrong day"):
        run(program="shell", args=["echo wrong day >&2; exit 2"])
    with pytest.raises(Snooze) as caught:
        run(program="shell", args=["exit 75"])
    assert caught.value.after_s == 5
    with pytest.raises(CommandFailed, match="status 1"):
        run(program="shell", args=["exit 1"])


def test_program_is_ended_after_its_own_time(allow: Any) -> None:
    allow(shell={"argv": ["/bin/sh", "-c"], "timeout_s": 0.2})
    with pytest.raises(CommandFailed, match=r"shell was ended after 0\.2 s, which DISPATCHER_COMMANDS allows it"):
        run(program="shell", args=["exec sleep 100"])


def test_executors_are_registered_as_installed() -> None:
    registry = Registry.load()
    assert {"bulk_import", "command", "session_init", "session_remove", "workspace_init"} <= set(registry.types)
    spec = registry.get("command")
    assert spec
    assert spec.retry.max_attempts == 1
    assert spec.description == "Runs an allowed program with the given arguments, without a shell."
