"""dispatcher replica list."""

from __future__ import annotations

import click

from dispatcher.cli.base import common, common_options
from dispatcher.cli.output import as_dict, print_json, print_table
from dispatcher.cli.session import client


@click.group("replica")
def command() -> None:
    """The daemons."""


@command.command("list")
@common_options
def list_replicas() -> None:
    """List the daemons, living or just gone."""
    with client() as db:
        replicas = db.replicas()
    if common().json:
        print_json([as_dict(one) for one in replicas])
        return
    head = ("ID", "ROLE", "LEASE", "HOST", "PID", "RUNNING", "STARTED", "VERSION", "TYPES")
    print_table(
        head,
        [
            (
                r.id,
                _role(r.alive, r.leads),
                r.lease,
                r.host,
                r.pid,
                r.running,
                r.started_at,
                r.version,
                r.types,
            )
            for r in replicas
        ],
    )


def _role(alive: bool, leads: bool) -> str:
    if leads:
        return "leader"
    return "standby" if alive else "gone"
