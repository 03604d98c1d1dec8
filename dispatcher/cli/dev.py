"""dispatcher dev: everything in one place, to try it."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from typing import Any

import click
from pydantic import SecretStr

from dispatcher import migrate
from dispatcher.api.sockets import listen
from dispatcher.cli.base import common_options, fail, note
from dispatcher.cli.flags import settings_flags
from dispatcher.cli.run import run_daemon
from dispatcher.cli.session import settings
from dispatcher.client import Client
from dispatcher.embedded import EmbeddedPostgres, EmbeddedPostgresError
from dispatcher.errors import SettingsError
from dispatcher.settings import Settings

END_S = 5.0


@click.command("dev")
@click.option("--data", metavar="DIR", help="Keep the database in this folder; without it, it is gone at the end.")
@settings_flags
@common_options
@click.pass_context
def command(context: click.Context, /, data: str | None, **flags: Any) -> None:
    """Start a PostgreSQL, a replica and the HTTP API of your own, until Ctrl-C."""
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
            click.echo(f"export DISPATCHER_DSN={shlex.quote(server.dsn)}")
            with _http_api(loaded, fixed=origin["api_port"] != "default"):
                _greet()
                context.exit(run_daemon(loaded))
    except EmbeddedPostgresError as exc:
        fail(str(exc))


@contextlib.contextmanager
def _http_api(loaded: Settings, *, fixed: bool) -> Iterator[None]:
    """The HTTP API beside the replica, and a token for it; on another port where the usual one is taken."""
    try:
        from dispatcher.api import server  # noqa: PLC0415 - of an extra
    except ModuleNotFoundError as exc:
        if (exc.name or "").startswith("dispatcher"):
            raise
        note("Without the HTTP API: pip install 'pg-dispatcher[api]' adds it.")
        yield
        return
    try:
        listening = listen(loaded.api_host, loaded.api_port)
    except SettingsError:
        if fixed:
            raise
        listening = listen(loaded.api_host, 0)
    host, port = listening.getsockname()[:2]
    with Client(loaded.dsn.get_secret_value()) as client:
        _, token = client.create_token("dev", role="admin")
    click.echo(f"export DISPATCHER_API_URL=http://{f'[{host}]' if ':' in host else host}:{port}")
    click.echo(f"export DISPATCHER_API_TOKEN={token}")
    thread = server.ServerThread(server.make_app(loaded), listening)
    try:
        yield
    finally:
        thread.stop()
        thread.join(END_S)


def _greet() -> None:
    note(
        "PostgreSQL is ready, the replica is starting; Ctrl-C stops all. "
        "In another terminal, paste the lines above, then:"
    )
    note("""  dispatcher enqueue hello '{"name": "you"}' --wait""")
    note("  dispatcher job list")
    note("""  curl -H "Authorization: Bearer $DISPATCHER_API_TOKEN" $DISPATCHER_API_URL/jobs""")
