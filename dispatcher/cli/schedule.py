"""dispatcher schedule: list, add, remove, pause, resume, trigger."""

from __future__ import annotations

from typing import Any

import click

from dispatcher.cli.base import common, common_options
from dispatcher.cli.output import as_dict, cell, print_json, print_table
from dispatcher.cli.session import client
from dispatcher.cli.values import Duration
from dispatcher.errors import ScheduleNotFound
from dispatcher.options import MAX_PRIORITY, MIN_PRIORITY, Options, parse_payload
from dispatcher.queries.schedules import ScheduleInfo


@click.group("schedule")
def command() -> None:
    """Jobs by the calendar."""


@command.command("list")
@common_options
def list_schedules() -> None:
    """List the schedules with their next and their last run."""
    with client() as db:
        found = db.schedules()
    if common().json:
        print_json([as_dict(one) for one in found])
        return
    head = ("NAME", "CRON", "ZONE", "TYPE", "NEXT", "LAST", "LAST JOB", "CATCH UP", "STATE")
    print_table(head, [_row(one) for one in found])


@command.command()
@click.argument("name")
@click.argument("cron")
@click.argument("type")
@click.argument("payload", required=False, default="{}")
@click.option("--zone", default="UTC", show_default=True, metavar="ZONE", help="Such as Europe/Berlin.")
@click.option(
    "--catch-up",
    type=click.Choice(["skip", "one", "all"]),
    default="one",
    show_default=True,
    help="What becomes of due times at which nobody led.",
)
@click.option("--priority", type=click.IntRange(MIN_PRIORITY, MAX_PRIORITY), metavar="N", help="Lower runs first.")
@click.option("--tenant", metavar="NAME")
@click.option("--unique-key", metavar="KEY", help="Adds no job while the last one with this key is unfinished.")
@click.option("--max-attempts", type=click.IntRange(1, MAX_PRIORITY), metavar="N", help="Failures that end a job.")
@click.option("--timeout", type=Duration(), metavar="DURATION", help="How long a job may run.")
@common_options
def add(name: str, cron: str, type: str, payload: str, zone: str, catch_up: str, **given: Any) -> None:
    """Add a schedule, or change the one of this NAME. CRON: five fields, quoted, such as '30 4 * * MON-FRI'."""
    body, _ = parse_payload(payload)
    options: Options = {**given}  # type: ignore[typeddict-item] # each option above is one of them
    with client() as db:
        db.add_schedule(name, cron, type, body, zone=zone, catch_up=catch_up, **options)
        info = next((one for one in db.schedules() if one.name == name), None)
    if info is None:  # somebody has removed it at once
        raise ScheduleNotFound(f"there is no schedule {name!r}")
    print_json(as_dict(info)) if common().json else click.echo(f"{name}: {info.cron} ({info.zone})")


@command.command()
@click.argument("name")
@common_options
def remove(name: str) -> None:
    """Remove a schedule; its jobs stay."""
    with client() as db:
        db.remove_schedule(name)
    print_json({"name": name}) if common().json else click.echo("removed")


@command.command()
@click.argument("name")
@common_options
def pause(name: str) -> None:
    """Fire a schedule no more."""
    with client() as db:
        changed = db.pause_schedule(name)
    _say(name, changed, "paused", "already paused")


@command.command()
@click.argument("name")
@common_options
def resume(name: str) -> None:
    """Go on with a schedule from now; what was due meanwhile is not caught up."""
    with client() as db:
        changed = db.resume_schedule(name)
    _say(name, changed, "resumed", "not paused")


@command.command()
@click.argument("name")
@common_options
def trigger(name: str) -> None:
    """Enqueue a schedule's job now and print its id."""
    with client() as db:
        id = db.trigger_schedule(name)
    print_json({"name": name, "id": id}) if common().json else click.echo(id)


def _say(name: str, changed: bool, done: str, otherwise: str) -> None:
    if common().json:
        print_json({"name": name, "changed": changed})
    else:
        click.echo(done if changed else otherwise)


def _row(one: ScheduleInfo) -> tuple[Any, ...]:
    state = f"stopped: {one.error}" if one.error else f"paused by {one.paused_by}" if one.paused_at else "on"
    following = None if one.paused_at or one.error else one.next_at
    return (
        one.name,
        one.cron,
        one.zone,
        one.type,
        following,
        one.last_at,
        one.last_job_id,
        one.catch_up,
        cell(state, 80),
    )
