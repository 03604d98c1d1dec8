"""dispatcher dev: everything in one place, to try it."""

from __future__ import annotations

import shlex
from typing import Any

import click
from pydantic import SecretStr

from dispatcher import migrate
from dispatcher.cli.base import common_options, fail, note
from dispatcher.cli.flags import settings_flags
from dispatcher.cli.run import run_daemon
from dispatcher.cli.session import settings
from dispatcher.embedded import EmbeddedPostgres, EmbeddedPostgresError


@click.command("dev")
@click.option("--data", metavar="DIR", help="Keep the database in this folder; without it, it is gone at the end.")
@settings_flags
@common_options
@click.pass_context
def command(context: click.Context, /, data: str | None, **flags: Any) -> None:
    """Start a PostgreSQL and a replica of your own, until Ctrl-C."""
    loaded, origin = settings(flags)
    if origin["metrics_port"] == "default":  # the usual one may be taken, and nobody scrapes this replica
        loaded = loaded.model_copy(update={"metrics_port": 0})
    try:
        with EmbeddedPostgres(data) as server:
            migrate.migrate(server.dsn)
            loaded = loaded.model_copy(
                update={
                    "dsn": SecretStr(server.dsn),
                    "executors": [*loaded.executors, "dispatcher.cli.hello"],
                }
            )
            _greet(server.dsn)
            context.exit(run_daemon(loaded))
    except EmbeddedPostgresError as exc:
        fail(str(exc))


def _greet(dsn: str) -> None:
    click.echo(f"export DISPATCHER_DSN={shlex.quote(dsn)}")
    note(
        "PostgreSQL is ready, the replica is starting; Ctrl-C stops both. "
        "In another terminal, paste the line above, then:"
    )
    note("""  dispatcher enqueue hello '{"name": "you"}' --wait""")
    note("  dispatcher job list")
