"""dispatcher enqueue."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from dispatcher.cli.base import common, common_options, fail
from dispatcher.cli.job import WELL, report_failures
from dispatcher.cli.ndjson import open_lines
from dispatcher.cli.output import json_text, print_json
from dispatcher.cli.session import client
from dispatcher.cli.values import Duration, Moment
from dispatcher.client import Client
from dispatcher.errors import InvalidPayload
from dispatcher.options import MAX_PRIORITY, MIN_PRIORITY, Options


@click.command("enqueue")
@click.argument("type")
@click.argument("payload", required=False, metavar="[PAYLOAD|-]")
@click.option(
    "--file",
    metavar="NDJSON",
    help="A job for each line of this file, all or none; - reads standard input, gzip is fine.",
)
@click.option(
    "--priority",
    type=click.IntRange(MIN_PRIORITY, MAX_PRIORITY),
    metavar="N",
    help="Lower runs first; 0 if not given.",
)
@click.option("--in", "delay", type=Duration(), metavar="DURATION", help="Run it in so long: 30, 5s, 15min, 1d.")
@click.option("--at", "run_at", type=Moment(), metavar="TIME", help="Run it at this time, with its zone.")
@click.option(
    "--unique-key",
    metavar="KEY",
    help="At most one unfinished job of this type and key; prints the id of the first.",
)
@click.option("--tenant", metavar="NAME")
@click.option(
    "--max-attempts",
    type=click.IntRange(1, MAX_PRIORITY),
    metavar="N",
    help="Failures that end it; the type's if not given.",
)
@click.option("--timeout", type=Duration(), metavar="DURATION", help="How long it may run; the type's if not given.")
@click.option("--wait", is_flag=True, help="Wait for it and print its result; exit with 1 if it failed.")
@common_options
def command(type: str, payload: str | None, file: str | None, wait: bool, **given: Any) -> None:
    """Enqueue a job of TYPE and print its id. PAYLOAD: a JSON object, {} if missing; - for standard input."""
    if given["delay"] is not None and given["run_at"] is not None:
        raise click.UsageError("--in and --at exclude each other")
    if file is not None and payload is not None:
        raise click.UsageError("PAYLOAD and --file exclude each other")
    if file is not None and given["unique_key"] is not None:
        raise click.UsageError("--unique-key names one job; it does not go with --file")
    options: Options = {**given}  # type: ignore[typeddict-item] # each option above is one of them
    text = _read(payload) if file is None else ""
    with client() as db:
        if file is not None:
            _enqueue_file(db, type, file, options, wait)
        else:
            _enqueue_one(db, type, text, options, wait)


def _read(payload: str | None) -> str:
    if payload == "-":
        try:
            return sys.stdin.buffer.read().decode("utf-8-sig")
        except UnicodeDecodeError as exc:
            raise InvalidPayload(f"the payload is not UTF-8: {exc.reason} at byte {exc.start + 1}") from None
    return "{}" if payload is None else payload


def _enqueue_one(db: Client, type: str, text: str, options: Options, wait: bool) -> None:
    id, created = db.enqueue_text(type, text, **options)
    if not wait:
        print_json({"id": id, "created": created}) if common().json else click.echo(id)
        return
    if not common().json:
        click.echo(id)
    job = db.wait(id)
    if common().json:
        print_json(job)
    else:
        click.echo(job.state.value)
        if job.state in WELL:
            click.echo(json_text(job.result))
    report_failures([job])


def _enqueue_file(db: Client, type: str, file: str, options: Options, wait: bool) -> None:
    size = None if file == "-" else _size(file)
    show = size is not None and sys.stderr.isatty()
    bar: Any = click.progressbar(length=size, file=sys.stderr, label=f"enqueue {type}") if show else nullcontext()
    with bar, open_lines(file, bar.update if show else lambda _bytes: None) as chunks:
        ids = db.enqueue_lines(type, chunks, **options)
    jobs = db.wait(ids) if wait else []
    if common().json:
        print_json({"count": len(ids), "ids": ids} | ({"jobs": jobs} if wait else {}))
    else:
        click.echo(f"{len(ids)} jobs enqueued" + (f", {ids[0]} to {ids[-1]}" if ids else ""))
    report_failures(jobs)


def _size(file: str) -> int:
    try:
        return Path(file).stat().st_size
    except OSError as exc:
        fail(f"cannot read {file}: {exc.strerror}")
