"""dispatcher batch show."""

from __future__ import annotations

import click

from dispatcher.batch import BatchInfo
from dispatcher.cli.base import common, common_options
from dispatcher.cli.output import moment, print_fields, print_json
from dispatcher.cli.session import client

COUNTS = ("scheduled", "blocked", "pending", "running", "succeeded", "partial", "failed", "canceled")


@click.group("batch")
def command() -> None:
    """Look at batches. To cancel or retry one: dispatcher job cancel, dispatcher job retry."""


@command.command()
@click.argument("id", type=int)
@common_options
def show(id: int) -> None:
    """Print a batch and how many of its jobs are in each state, exactly."""
    with client() as db:
        batch = db.get_batch(id)
    print_batch(batch)


def print_batch(batch: BatchInfo) -> None:
    """A batch for a person, or for a program."""
    if common().json:
        print_json(batch)
        return
    counts = ((state, getattr(batch, state)) for state in COUNTS)
    asked = " (asked to stop)" if batch.cancel_requested and batch.finished_at is None else ""
    pairs = [
        ("id", batch.id),
        ("state", f"{batch.state}{asked}"),
        ("type", batch.type),
        ("tenant", batch.tenant),
        ("jobs", batch.total),
        *((state, count) for state, count in counts if count),
        ("callback", batch.callback_id),
        ("created", moment(batch.created_at)),
        ("finished", moment(batch.finished_at) if batch.finished_at else None),
    ]
    print_fields([pair for pair in pairs if pair[1] is not None])
