"""dispatcher version."""

from __future__ import annotations

import platform

import click

from dispatcher.cli.base import common, common_options
from dispatcher.cli.output import print_json
from dispatcher.version import __version__


@click.command("version")
@common_options
def command() -> None:
    """Print the version."""
    if common().json:
        print_json({"version": __version__, "python": platform.python_version()})
    else:
        click.echo(f"dispatcher {__version__}")
