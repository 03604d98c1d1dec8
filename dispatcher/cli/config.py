"""dispatcher config."""

from __future__ import annotations

from typing import Any

import click
from psycopg import conninfo

from dispatcher.cli.base import common, common_options, note
from dispatcher.cli.flags import settings_flags
from dispatcher.cli.output import print_json, print_table
from dispatcher.cli.session import exposed, settings

SECRET = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")


@click.command("config")
@settings_flags
@common_options
def command(**flags: Any) -> None:
    """Print every setting, its value and where it comes from; exit with 1 if they contradict each other."""
    loaded, origin = settings(flags)
    if complaint := exposed(loaded, origin):
        note(complaint)
    values = {**loaded.model_dump(mode="json"), "dsn": masked(loaded.dsn.get_secret_value())}
    if common().json:
        print_json({name: {"value": value, "origin": origin[name]} for name, value in values.items()})
        return
    rows = [(name, _text(value), origin[name]) for name, value in values.items()]
    print_table(("SETTING", "VALUE", "ORIGIN"), rows)


def masked(dsn: str) -> str:
    """A DSN without its secrets."""
    params = {name: "***" if name in SECRET else value for name, value in conninfo.conninfo_to_dict(dsn).items()}
    return conninfo.make_conninfo("", **params)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}={number}" for name, number in value.items())
    return ",".join(value) if isinstance(value, list) else str(value)
