"""dispatcher api."""

from __future__ import annotations

from typing import Any

import click

from dispatcher import logs
from dispatcher.cli.base import common_options, fail
from dispatcher.cli.flags import settings_flags
from dispatcher.cli.session import settings
from dispatcher.conceal import conceal_environment

MISSING = "the HTTP API needs more packages: pip install 'pg-dispatcher[api]'"


@click.command("api")
@settings_flags
@common_options
def command(**flags: Any) -> None:
    """Serve the HTTP API until SIGTERM or Ctrl-C. `dispatcher token create` makes a token for it; /docs shows it."""
    loaded, _ = settings(flags)
    try:
        from dispatcher.api.server import serve  # noqa: PLC0415 - of an extra
    except ModuleNotFoundError as exc:
        if (exc.name or "").startswith("dispatcher"):
            raise
        fail(f"{MISSING} ({exc.name} is not there)")
    logs.configure(loaded.log_level, loaded.log_format)
    conceal_environment()
    serve(loaded)
