"""dispatcher leader: show, resign."""

from __future__ import annotations

import time

import click

from dispatcher.cli.base import common, common_options, fail, note
from dispatcher.cli.output import as_dict, moment, print_fields, print_json
from dispatcher.cli.session import settings
from dispatcher.client import Client
from dispatcher.options import seconds
from dispatcher.queries.fleet import LeaderInfo

POLL_S = 0.02  # a graceful hand-over takes a few milliseconds


@click.group("leader")
def command() -> None:
    """Who leads; make it resign."""


@command.command()
@click.option("--lease-name", metavar="NAME", help="Which lease.")
@common_options
def show(lease_name: str | None) -> None:
    """Print who leads; exit with 1 if nobody does."""
    loaded, _ = settings({"lease_name": lease_name})
    with Client(loaded.dsn.get_secret_value()) as db:
        leader = db.leader(loaded.lease_name)
    if common().json:
        print_json(None if leader is None else as_dict(leader))
    elif leader is not None:
        _print(leader)
    if leader is None:
        fail(f"nobody leads: the lease {loaded.lease_name!r} is free")


@command.command()
@click.option("--lease-name", metavar="NAME", help="Which lease.")
@click.option("--timeout", default="10s", show_default=True, metavar="DURATION", help="How long to wait for it.")
@common_options
def resign(lease_name: str | None, timeout: str) -> None:
    """Ask the leader to give the lease away, and wait until it has. Its running jobs go on."""
    limit_s = seconds("timeout", timeout)
    loaded, _ = settings({"lease_name": lease_name})
    name = loaded.lease_name
    with Client(loaded.dsn.get_secret_value()) as db:
        before = db.leader(name)
        if before is None or db.ask_to_resign(name) is None:
            fail(f"nobody leads: the lease {name!r} is free")
        after = _wait_for_change(db, name, before, limit_s)
    if common().json:
        print_json({"before": as_dict(before), "after": None if after is None else as_dict(after)})
        return
    note(f"replica {before.replica} has resigned")
    if after is None:
        note("nobody has taken the lease yet")
    else:
        _print(after)


def _wait_for_change(db: Client, name: str, before: LeaderInfo, limit_s: float) -> LeaderInfo | None:
    deadline = time.monotonic() + limit_s
    while True:
        now = db.leader(name)
        if now is None or now.term != before.term:
            return now
        if time.monotonic() >= deadline:
            fail(f"replica {before.replica} still leads, {limit_s:g} s after it was asked to resign")
        time.sleep(POLL_S)


def _print(leader: LeaderInfo) -> None:
    print_fields(
        [
            ("replica", leader.replica),
            ("host", leader.host),
            ("pid", leader.pid),
            ("term", leader.term),
            ("since", moment(leader.since)),
            ("version", leader.version),
        ]
    )
