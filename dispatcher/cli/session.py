"""What commands need of the database: the settings, and a client."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from dispatcher.cli.base import common
from dispatcher.client import Client
from dispatcher.db import check_dsn
from dispatcher.settings import Settings, load

LIBPQ = ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGSERVICEFILE")  # what names a server to libpq


def settings(flags: dict[str, Any] | None = None) -> tuple[Settings, dict[str, str]]:
    """The settings and their origins: flag over environment over file over default."""
    shared = common()
    loaded, origin = load({**(flags or {}), "dsn": shared.dsn}, shared.config)
    check_dsn(loaded.dsn.get_secret_value())
    shared.no_dsn = origin["dsn"] == "default" and not any(name in os.environ for name in LIBPQ)
    return loaded, origin


def exposed(loaded: Settings, origin: dict[str, str]) -> str | None:
    """What is wrong where everybody can read a settings file that has the password of the database."""
    kind, _, file = origin["dsn"].partition(" ")
    params = check_dsn(loaded.dsn.get_secret_value())
    if kind != "file" or not params.get("password") or not Path(file).stat().st_mode & stat.S_IROTH:
        return None
    return f"everybody can read the settings file {file}, which has a password: chmod o-r, or use a pgpass file"


def dsn() -> str:
    """The DSN that the settings lead to."""
    return settings()[0].dsn.get_secret_value()


def client() -> Client:
    """A client of the database that the settings lead to."""
    return Client(dsn())
