"""Type `command`: runs a program from a list that the administrator of the daemon has allowed."""

from __future__ import annotations

import os
import tempfile
from datetime import timedelta
from pathlib import Path
from signal import Signals
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError

from dispatcher import Context, Fail, Job, ProgramResult, clean_environment, executor, run_program

SETTING = "DISPATCHER_COMMANDS"
EXAMPLE = '{"backup": "/usr/local/bin/backup", "report": ["/usr/bin/python3", "/srv/report.py"]}'

_NAMES = {int(signal): signal.name for signal in Signals}


def _passable(text: str) -> str:
    if "\0" in text:
        raise ValueError("a program cannot be given a NUL character")
    text.encode()  # half of a surrogate pair has no bytes
    return text


def _job_variable(name: str) -> str:
    # Free names would let LD_PRELOAD or PATH turn an allowed program into any other.
    if not (name.startswith("JOB_") and name.replace("_", "a").isalnum() and name.isascii()):
        raise ValueError("names of variables must begin with JOB_ and consist of letters, digits and _")
    return name


Text = Annotated[str, AfterValidator(_passable)]


class CommandPayload(BaseModel):
    """What `command` accepts."""

    model_config = ConfigDict(extra="forbid")

    program: str
    """A name in DISPATCHER_COMMANDS, no path."""
    args: list[Text] = []
    """Passed as they are: no shell sees them."""
    stdin: str | None = None
    env: dict[Annotated[str, AfterValidator(_job_variable)], Text] = {}


class CommandFailed(Exception):
    """The program ended with an exit status other than 0, or by a signal."""


@executor(
    "command",
    limit=8,
    timeout=timedelta(hours=1),
    max_attempts=1,  # nobody knows whether a program may run twice but who enqueues it
    payload=CommandPayload,
)
def command(job: Job, ctx: Context) -> dict[str, Any]:
    """Runs an allowed program with the given arguments, without a shell."""
    payload: CommandPayload = job.payload
    argv = [*allowed(payload.program), *payload.args]
    ctx.progress(0, f"{payload.program} runs")
    # A folder of its own, empty, so that no file lying about changes what the program does.
    with tempfile.TemporaryDirectory(prefix="job-", ignore_cleanup_errors=True) as folder:
        variables = {"JOB_ID": str(job.id), "JOB_ATTEMPT": str(job.attempt), "HOME": folder, "TMPDIR": folder}
        try:
            ended = run_program(
                argv,
                ctx=ctx,
                cwd=folder,
                env=clean_environment(payload.env | variables),
                stdin=None if payload.stdin is None else payload.stdin.encode(),
            )
        except OSError as exc:
            raise Fail(f"{payload.program} cannot be started: {argv[0]}: {exc.strerror}") from exc
    if ended.exit_status != 0:
        raise CommandFailed(describe(payload.program, ended))
    return {
        "exit_status": ended.exit_status,
        "stdout": text(ended.stdout),
        "stderr": text(ended.stderr),
        "stdout_truncated": ended.stdout_truncated,
        "stderr_truncated": ended.stderr_truncated,
        "duration_s": round(ended.duration_s, 3),
    }


def allowed(name: str) -> list[str]:
    """The path and fixed arguments of an allowed program, or Fail with what to do."""
    setting = os.environ.get(SETTING, "").strip() or "{}"
    try:
        entries = TypeAdapter(dict[str, str | list[str]]).validate_json(setting)
    except ValidationError:
        raise Fail(f"{SETTING} must be a JSON object like {EXAMPLE}") from None
    if not entries:
        raise Fail(f"no program is allowed: set {SETTING} for the daemon, for example to {EXAMPLE}")
    if name not in entries:
        raise Fail(f"program {name!r} is not allowed; {SETTING} has {', '.join(sorted(entries))}")
    entry = entries[name]
    argv = [entry] if isinstance(entry, str) else entry
    if not argv or not Path(argv[0]).is_absolute():
        raise Fail(f"{SETTING}: {name!r} needs an absolute path")
    return argv


def describe(program: str, ended: ProgramResult) -> str:
    """One line: how it ended, and the last line that it wrote on standard error."""
    if ended.signal is not None:
        how = f"was killed by {_NAMES.get(ended.signal, f'signal {ended.signal}')}"
    else:
        how = f"exited with status {ended.exit_status}"
    lines = text(ended.stderr).strip().splitlines()
    return f"{program} {how}" + (f": {lines[-1].strip()[:500]}" if lines else "")


def text(output: bytes) -> str:
    """Output as text that PostgreSQL can store: it knows no NUL, and programs write what they like."""
    return output.decode(errors="replace").replace("\0", "\ufffd")
