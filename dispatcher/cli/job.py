"""dispatcher job: show, result, cancel, wait; its other verbs are in dispatcher.cli.ended and .explain."""

from __future__ import annotations

from typing import Any

import click

from dispatcher.cli.base import common, common_options, fail, note, printable
from dispatcher.cli.ended import act_on_each, list_jobs, purge, retry
from dispatcher.cli.explain import explain
from dispatcher.cli.output import as_dict, json_text, moment, print_fields, print_json
from dispatcher.cli.session import client
from dispatcher.job import FINAL, JobInfo, State
from dispatcher.operations import describe_failure

MOST_SHOWN = 20
WELL = (State.SUCCEEDED, State.PARTIAL)


@click.group("job")
def command() -> None:
    """Look at jobs, cancel them, run them again, wait for them."""


command.add_command(list_jobs)
command.add_command(retry)
command.add_command(purge)
command.add_command(explain)


@command.command()
@click.argument("id", type=int)
@common_options
def show(id: int) -> None:
    """Print everything about a job."""
    with client() as db:
        job, before = db.get(id), db.predecessors(id)
    if common().json:
        print_json(as_dict(job) | {"after": [one.id for one in before]})
    else:
        print_job(job, before)


@command.command()
@click.argument("id", type=int)
@common_options
def result(id: int) -> None:
    """Print a job's result, as JSON; exit with 1 if it failed or has not ended."""
    with client() as db:
        value = db.result(id)
    if common().json:
        print_json(value)
    else:
        click.echo(json_text(value))


@command.command()
@click.argument("ids", type=int, nargs=-1, required=True, metavar="ID...")
@common_options
def cancel(ids: tuple[int, ...]) -> None:
    """Cancel jobs; a running one is asked to stop."""
    with client() as db:
        act_on_each(ids, db.cancel)


@command.command()
@click.argument("ids", type=int, nargs=-1, required=True, metavar="ID...")
@click.option("--timeout", metavar="DURATION", help="Give up after so long: 30, 5s, 2min.")
@common_options
def wait(ids: tuple[int, ...], timeout: str | None) -> None:
    """Wait until jobs have ended; exit with 1 if one failed or was canceled."""
    try:
        with client() as db:
            jobs = db.wait(list(ids), timeout)
    except TimeoutError as exc:
        fail(str(exc))
    if common().json:
        print_json(jobs[0] if len(ids) == 1 else jobs)
    else:
        for job in jobs:
            click.echo(f"{job.id} {job.state}")
    report_failures(jobs)


def report_failures(jobs: list[JobInfo]) -> None:
    """Exits with 1, and a line for each of the first few, if any of the jobs did not end well."""
    failed = [job for job in jobs if job.state not in WELL]
    for job in failed[:10]:
        note(describe_failure(job))
    if len(failed) > 10:
        note(f"and {len(failed) - 10} more")
    if failed:
        click.get_current_context().exit(1)


def print_job(job: JobInfo, before: list[JobInfo]) -> None:
    """A job, and those after which it runs, for a person."""
    pairs: list[tuple[str, Any]] = [
        ("id", job.id),
        ("type", job.type),
        ("state", _state(job)),
        ("tenant", job.tenant),
        ("batch", job.parent_id),
        ("after", _after(before)),
        ("priority", job.priority),
        ("unique key", job.unique_key),
        ("attempt", f"{job.attempt}, {job.failures} of {job.max_attempts} failures"),
        ("timeout", job.timeout),
        (
            "progress",
            f"{job.progress:g}%" + (f" {printable(job.progress_message)}" if job.progress_message else ""),
        ),
        ("created", moment(job.created_at)),
        ("run at", moment(job.run_at)),
        ("started", moment(job.started_at)),
        ("finished", moment(job.finished_at)),
        ("replica", job.owner),
        ("payload", json_text(job.payload)),
    ]
    if job.state in FINAL or job.result is not None:
        pairs.append(("result", json_text(job.result)))
    if job.result_url:
        pairs.append(("result at", job.result_url))
    pairs += [("error", _error(error)) for error in job.errors[-MOST_SHOWN:]]
    print_fields([pair for pair in pairs if pair[1] is not None])


def _after(before: list[JobInfo]) -> str | None:
    more = f" and {len(before) - MOST_SHOWN} more" if len(before) > MOST_SHOWN else ""
    return ", ".join(f"{job.id} ({job.state})" for job in before[:MOST_SHOWN]) + more or None


def _error(error: dict[str, Any]) -> str:
    line = f"attempt {error.get('attempt')}, {error.get('kind')}: {error.get('message')}"
    trace = error.get("trace") or ""
    return "\n".join(printable(part) for part in [line, *str(trace).rstrip().splitlines()])


def _state(job: JobInfo) -> str:
    marks = [text for flag, text in ((job.cancel_requested, "asked to stop"), (job.timed_out, "timed out")) if flag]
    return str(job.state) + (f" ({', '.join(marks)})" if marks and job.state is State.RUNNING else "")
