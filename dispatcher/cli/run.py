"""dispatcher run."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from dispatcher import logs
from dispatcher.cli.base import common, common_options
from dispatcher.cli.flags import settings_flags
from dispatcher.cli.session import exposed, settings
from dispatcher.conceal import conceal_environment
from dispatcher.daemon import Daemon
from dispatcher.errors import DispatcherError
from dispatcher.executor import Registry
from dispatcher.settings import Settings, load

log = logging.getLogger("dispatcher.cli")


@click.command("run")
@settings_flags
@common_options
@click.pass_context
def command(context: click.Context, /, **flags: Any) -> None:
    """Run a replica until SIGTERM or Ctrl-C: it leads, or stands by. Run `dispatcher migrate` first."""
    loaded, origin = settings(flags)
    file = common().config
    context.exit(
        run_daemon(
            loaded,
            reload=lambda: load({**flags, "dsn": loaded.dsn}, file)[0],
            complaint=exposed(loaded, origin),
        )
    )


def run_daemon(
    loaded: Settings, *, reload: Callable[[], Settings] = lambda: load()[0], complaint: str | None = None
) -> int:
    """One replica in this process, until it is told to stop; `reload` reads the settings again on SIGHUP."""
    logs.configure(loaded.log_level, loaded.log_format)
    if complaint:
        log.warning(complaint)
    conceal_environment()
    # Last: executors may lie in the working directory, but nothing there may stand in for another module.
    if (here := os.getcwd()) not in sys.path:  # noqa: PTH109 - sys.path holds texts
        sys.path.append(here)
    registry = Registry.load(loaded.executors)
    if loaded.types:
        registry = registry.only(loaded.types)
    try:
        return Daemon(loaded, registry, reload=reload).run()
    except DispatcherError:
        raise
    except Exception:
        log.exception("the replica ended by an error that should not occur")
        return 1
