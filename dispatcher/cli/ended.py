"""dispatcher job: list; retry and purge, by id or by a filter with a preview."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from dispatcher.cli.base import common, common_options, note
from dispatcher.cli.output import as_dict, cell, print_json, print_table
from dispatcher.cli.session import client
from dispatcher.cli.values import Past
from dispatcher.client import Client
from dispatcher.errors import DispatcherError
from dispatcher.job import JobInfo, State

F = TypeVar("F", bound=Callable[..., Any])
PATIENCE_S = 2.0  # of a list that finds few jobs among many; then it says where to go on
AGAIN = (State.FAILED, State.PARTIAL, State.CANCELED)
ENDED = (*AGAIN, State.SUCCEEDED)


def _narrowing(states: tuple[State, ...], *, message: bool = True) -> Callable[[F], F]:
    """The flags that say which jobs."""
    flags: list[Callable[[F], F]] = [
        click.option("--type", metavar="TYPE", help="Only this type."),
        click.option(
            "--state",
            type=click.Choice([state.value for state in states]),
            multiple=True,
            help="Only in this state; may be given several times.",
        ),
        click.option("--tenant", metavar="NAME", help="Only of this tenant."),
        click.option(
            "--kind", metavar="KIND", help="Only if the last error is of this kind: exception, timeout, crash ..."
        ),
        click.option(
            "--since",
            type=Past(),
            metavar="TIME",
            help="Only if it ended (before that: was created) since: a time with its zone, or 2h for two hours ago.",
        ),
        click.option("--until", type=Past(), metavar="TIME", help="The same, before."),
    ]
    if message:
        flags.insert(
            4, click.option("--message", metavar="TEXT", help="Only if the last error's message has this text.")
        )

    def add(function: F) -> F:
        for flag in reversed(flags):
            function = flag(function)
        return function

    return add


def _bulk(function: F) -> F:
    """The flags of what deals with many jobs at once."""
    for flag in (
        click.option("--dry-run", is_flag=True, help="Only say how many jobs match."),
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--all", is_flag=True, help="All failed jobs; needed where no other flag narrows it down."),
        click.option("--limit", type=click.IntRange(1), metavar="N", help="At most so many, the newest first."),
    ):
        function = flag(function)
    return function


@click.command("list")
@_narrowing(tuple(State), message=False)
@click.option("--parent", type=int, metavar="ID", help="Only the children of this batch.")
@click.option("--before", type=int, metavar="ID", help="Go on from here: the id that the page before ended with.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@common_options
def list_jobs(before: int | None, limit: int, **given: Any) -> None:
    """List jobs, the newest first."""
    given["state"] = given["state"] or None
    jobs: list[JobInfo] = []
    with client() as db:
        began = time.monotonic()
        while True:
            page = db.page(before=before, limit=limit - len(jobs), **given)
            jobs += page.jobs
            before = page.next
            if before is None or len(jobs) >= limit or time.monotonic() - began > PATIENCE_S:
                break
    if common().json:
        print_json([as_dict(job) for job in jobs])
    else:
        head = ("ID", "TYPE", "STATE", "CREATED", "ATTEMPT", "PROGRESS", "TENANT", "LAST ERROR")
        print_table(head, [_row(job) for job in jobs])
    if before is not None:
        note(f"there may be more: --before {before}")


@click.command()
@click.argument("ids", type=int, nargs=-1, metavar="[ID...]")
@click.option("--failed", is_flag=True, help="Failed jobs: short for --state failed.")
@_narrowing(AGAIN)
@_bulk
@common_options
def retry(ids: tuple[int, ...], failed: bool, yes: bool, dry_run: bool, **given: Any) -> None:
    """Run ended jobs again, with a fresh count of tries, or scheduled ones at once.

    By id; or all that match the flags: first it says how many, and asks.
    """
    if failed:
        given["state"] = tuple(dict.fromkeys((*given["state"], State.FAILED.value)))
    filters = _filters(given)
    if bool(ids) == bool(filters) or (not ids and set(filters) == {"limit"}):
        raise click.UsageError("give the ids of jobs, or flags that say which, such as --failed; not both")
    if ids and dry_run:
        raise click.UsageError("--dry-run goes with flags that say which jobs, not with their ids")
    with client() as db:
        if ids:
            act_on_each(ids, db.retry)
        elif agreed := _agreed(db, filters, "be retried", yes=yes, dry_run=dry_run):
            done = db.retry_where(**agreed)
            _report(done._asdict(), "retried: locked, their unique key taken, or a batch without failed jobs")


@click.command()
@_narrowing(ENDED)
@_bulk
@common_options
def purge(yes: bool, dry_run: bool, **given: Any) -> None:
    """Remove ended jobs for good, failed ones if no state is given: first it says how many, and asks."""
    filters = _filters(given)
    if not set(filters) - {"limit"}:
        raise click.UsageError("say which jobs, or --all for all failed ones")
    with client() as db:
        if agreed := _agreed(db, filters, "be removed for good", yes=yes, dry_run=dry_run):
            done = db.purge(**agreed)
            _report(done._asdict(), "purged, locked or still needed by other jobs")


def act_on_each(ids: tuple[int, ...], act: Callable[[int], str]) -> None:
    """Does all it can; exits with 1 if it could not do one."""
    if len(ids) == 1:
        state = act(ids[0])
        if common().json:
            print_json({"id": ids[0], "state": state})
        else:
            click.echo(state)
        return
    done: list[dict[str, Any]] = []
    for id in ids:
        try:
            done.append({"id": id, "state": act(id)})
        except DispatcherError as exc:
            done.append({"id": id, "error": str(exc)})
    if common().json:
        print_json(done)
    for one in done:
        if "error" in one:
            note(f"Error: {one['error']}")
        elif not common().json:
            click.echo(f"{one['id']} {one['state']}")
    if any("error" in one for one in done):
        click.get_current_context().exit(1)


def on_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty()


def _filters(given: dict[str, Any]) -> Any:
    # Not by equality: --since 0s is a filter, and 0 equals False.
    return {name: value for name, value in given.items() if value is not None and value is not False and value != ()}


def _agreed(db: Client, filters: Any, verb: str, *, yes: bool, dry_run: bool) -> Any:
    """With which filters to go on, None if not: says how many jobs it is about, and asks unless told not to."""
    if yes and not dry_run:
        return filters
    asked = time.monotonic()
    if not dry_run and not on_terminal():
        raise click.UsageError("there is no terminal to ask on: give --yes, or --dry-run to see how many")
    count = db.count_ended(**filters)
    if dry_run:
        print_json({"count": count}) if common().json else click.echo(count)
        return None
    note(f"{count:,} job{'' if count == 1 else 's'} would {verb}")
    if count and not click.confirm("Go on?", err=True):
        raise click.exceptions.Exit(1)
    return _as_of(filters, time.monotonic() - asked) if count else filters


def _as_of(filters: Any, ago_s: float) -> Any:
    """The same as they were so long ago: what has ended since the preview was not agreed to."""
    shifted = {name: filters[name] + ago_s for name in ("since", "until") if isinstance(filters.get(name), int | float)}
    return {"until": ago_s, **filters, **shifted}


def _report(done: dict[str, int], skipped: str) -> None:
    if common().json:
        print_json(done)
        return
    name, number = next(iter(done.items()))
    click.echo(f"{number} {name}")
    if done["skipped"]:
        note(f"{done['skipped']} not {skipped}")


def _row(job: JobInfo) -> tuple[Any, ...]:
    last = job.errors[-1].get("message") if job.errors and job.state is not State.SUCCEEDED else None
    progress = f"{job.progress:g}%" if job.progress else None
    error = None if last is None else cell(str(last), 40)
    return job.id, job.type, job.state.value, job.created_at, job.attempt, progress, job.tenant, error
