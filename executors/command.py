"""Type `command`: runs a program from a list that the administrator of the daemon has allowed."""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from datetime import timedelta
from pathlib import Path
from signal import Signals
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from dispatcher import Context, Fail, Job, ProgramResult, Snooze, clean_environment, executor, run_program

SETTING = "DISPATCHER_COMMANDS"
EXAMPLE = '{"backup": "/usr/local/bin/backup", "report": ["/usr/bin/python3", "/srv/report.py"]}'
MAX_RESULT_BYTES = (
    1 << 20
)  # of the file JOB_RESULT: as much as a row holds by default; what is larger belongs in a store
PROGRESS = re.compile(rb"::progress (\d{1,3}(?:\.\d+)?)%?(?: (.*))?")

_NAMES = {int(signal): signal.name for signal in Signals}


def _passable(text: str) -> str:
    if "\0" in text:
        raise ValueError("a program cannot be given a NUL character")
    text.encode()  # half of a surrogate pair has no bytes
    return text


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is none of its values")


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


class Program(BaseModel):
    """An entry of DISPATCHER_COMMANDS in its long form; a path or a list stands for `argv` alone."""

    model_config = ConfigDict(extra="forbid")

    argv: list[str]
    timeout_s: Annotated[float, Field(gt=0)] | None = None
    fail_on: list[int] = []
    """Exit statuses after which no other try can help."""
    snooze_on: list[int] = []
    """Exit statuses that mean "not now": it runs again after `snooze_s`, and no try is used up."""
    snooze_s: Annotated[float, Field(gt=0)] = 60.0


class CommandFailed(Exception):
    """The program ended with an exit status other than 0, by a signal, or took too long."""


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
    name, program = payload.program, allowed(payload.program)

    def hear(stream: str, line: bytes) -> None:
        if stream == "stdout" and (said := PROGRESS.fullmatch(line.rstrip())):
            ctx.progress(float(said[1]), text(said[2] or b"")[:200] or None)

    ctx.progress(0, f"{name} runs")
    # A folder of its own, empty, so that no file lying about changes what the program does.
    with tempfile.TemporaryDirectory(prefix="job-", ignore_cleanup_errors=True) as folder:
        output = Path(folder, "result.json")
        variables = {"JOB_ID": str(job.id), "JOB_ATTEMPT": str(job.attempt), "JOB_RESULT": str(output)}
        try:
            ended = run_program(
                [*program.argv, *payload.args],
                ctx=ctx,
                cwd=folder,
                env=clean_environment(payload.env | variables | {"HOME": folder, "TMPDIR": folder}),
                stdin=None if payload.stdin is None else payload.stdin.encode(),
                timeout_s=program.timeout_s,
                on_line=hear,
            )
        except OSError as exc:
            raise Fail(f"{name} cannot be started: {program.argv[0]}: {exc.strerror}") from exc
        if ended.timed_out:
            raise CommandFailed(f"{name} was ended after {program.timeout_s:g} s, which {SETTING} allows it")
        if ended.exit_status in program.snooze_on:
            raise Snooze(program.snooze_s)
        if ended.exit_status in program.fail_on:
            raise Fail(describe(name, ended))
        if ended.exit_status != 0:
            raise CommandFailed(describe(name, ended))
        said = read_result(name, output)
    return {
        "exit_status": ended.exit_status,
        "stdout": text(ended.stdout),
        "stderr": text(ended.stderr),
        "stdout_truncated": ended.stdout_truncated,
        "stderr_truncated": ended.stderr_truncated,
        "duration_s": round(ended.duration_s, 3),
    } | said


def allowed(name: str) -> Program:
    """What the setting says of an allowed program, or Fail with what to do."""
    setting = os.environ.get(SETTING, "").strip() or "{}"
    try:
        entries = TypeAdapter(dict[str, str | list[str] | Program]).validate_json(setting)
    except ValidationError:
        raise Fail(f"{SETTING} must be a JSON object like {EXAMPLE}") from None
    if not entries:
        raise Fail(f"no program is allowed: set {SETTING} for the daemon, for example to {EXAMPLE}")
    if name not in entries:
        raise Fail(f"program {name!r} is not allowed; {SETTING} has {', '.join(sorted(entries))}")
    match entries[name]:
        case Program() as program:
            pass
        case str(path):
            program = Program(argv=[path])
        case argv:
            program = Program(argv=argv)
    if not program.argv or not Path(program.argv[0]).is_absolute():
        raise Fail(f"{SETTING}: {name!r} needs an absolute path")
    return program


def read_result(name: str, path: Path) -> dict[str, Any]:
    """The JSON that the program left in its file JOB_RESULT as `{"result": ...}`; nothing where it left none."""
    try:
        # The program may have put a link to somebody else's file there, or a FIFO, whose opening would wait.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise Fail(f"the result of {name} cannot be read: JOB_RESULT: {exc.strerror}") from exc
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Fail(f"the result of {name} cannot be read: JOB_RESULT is no regular file")
        # One read() answers with all of a regular file of this size.
        data = os.read(fd, MAX_RESULT_BYTES + 1)
    finally:
        os.close(fd)
    if len(data) > MAX_RESULT_BYTES:
        raise Fail(f"the result of {name} is larger than {MAX_RESULT_BYTES} bytes")
    try:
        return {"result": json.loads(data, parse_constant=_refuse_constant)}
    except (ValueError, RecursionError) as exc:
        raise Fail(f"the result of {name} is no JSON: {exc}") from None


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
