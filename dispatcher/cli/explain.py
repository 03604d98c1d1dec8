"""dispatcher job explain."""

from __future__ import annotations

import click

from dispatcher.cli.base import common, common_options, printable
from dispatcher.cli.output import print_json
from dispatcher.cli.session import client


@click.command()
@click.argument("id", type=int)
@common_options
def explain(id: int) -> None:
    """Say why a job does not run, the most decisive reason first."""
    with client() as db:
        found = db.explain(id)
    if common().json:
        print_json(found)
        return
    click.echo(printable(found.summary))
    for reason in found.reasons[1:]:
        click.echo(f"also: {printable(reason.text)}")
