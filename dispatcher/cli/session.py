"""What commands need of the database: the settings, and a client."""

from __future__ import annotations

from typing import Any

from dispatcher.cli.base import common
from dispatcher.client import Client
from dispatcher.db import check_dsn
from dispatcher.settings import Settings, load


def settings(flags: dict[str, Any] | None = None) -> tuple[Settings, dict[str, str]]:
    """The settings and their origins: flag over environment over file over default."""
    shared = common()
    loaded, origin = load({**(flags or {}), "dsn": shared.dsn}, shared.config)
    check_dsn(loaded.dsn.get_secret_value())
    return loaded, origin


def dsn() -> str:
    """The DSN that the settings lead to."""
    return settings()[0].dsn.get_secret_value()


def client() -> Client:
    """A client of the database that the settings lead to."""
    return Client(dsn())
