"""dispatcher type list."""

from __future__ import annotations

import click

from dispatcher.cli.base import common, common_options
from dispatcher.cli.output import as_dict, print_json, print_table
from dispatcher.cli.session import client


@click.group("type")
def command() -> None:
    """The types of jobs that are known."""


@command.command("list")
@common_options
def list_types() -> None:
    """List the types that replicas have published."""
    with client() as db:
        types = db.types()
    if common().json:
        print_json([as_dict(one) for one in types])
        return
    head = ("TYPE", "LIMIT", "TIMEOUT", "ATTEMPTS", "SCHEMA", "PUBLISHED", "DESCRIPTION")
    print_table(
        head,
        [
            (
                t.name,
                t.limit,
                t.timeout,
                t.max_attempts,
                t.payload_schema is not None,
                t.published_at,
                t.description,
            )
            for t in types
        ],
    )
