"""dispatcher enqueue."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import click

from dispatcher.batch import Callback
from dispatcher.cli.base import common, common_options, fail, note
from dispatcher.cli.batch import print_batch
from dispatcher.cli.job import WELL, report_failures
from dispatcher.cli.ndjson import open_lines
from dispatcher.cli.output import json_text, print_json
from dispatcher.cli.session import client
from dispatcher.cli.values import Duration, Moment
from dispatcher.client import Client
from dispatcher.errors import DispatcherError, InvalidPayload
from dispatcher.job import JobInfo, State
from dispatcher.options import MAX_PRIORITY, MIN_PRIORITY, Options, parse_payload
from dispatcher.store import load_result

WHY_AFTER_S = 5.0  # who has waited so long may have been waiting for the wrong thing


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
@click.option("--after", type=int, multiple=True, metavar="ID", help="Run it once this job has ended; more than once.")
@click.option(
    "--on-failure",
    type=click.Choice(["cancel", "run"]),
    help="If one of those does not succeed: cancel it, or run it all the same; cancel if not given.",
)
@click.option("--parent", type=int, metavar="ID", help="The open batch that it joins.")
@click.option("--batch", is_flag=True, help="With --file: make one batch of the jobs, and print its id.")
@click.option("--callback", metavar="TYPE", help="With --batch: a job that runs once the batch has ended.")
@click.option("--callback-payload", metavar="PAYLOAD", help="Its payload, a JSON object.")
@click.option("--unique-field", metavar="NAME", help="With --file: the field of each line that is its unique key.")
@click.option("--wait", is_flag=True, help="Wait for it and print its result; exit with 1 if it failed.")
@common_options
def command(
    type: str,
    payload: str | None,
    file: str | None,
    wait: bool,
    batch: bool,
    callback: str | None,
    callback_payload: str | None,
    unique_field: str | None,
    **given: Any,
) -> None:
    """Enqueue a job of TYPE and print its id. PAYLOAD: a JSON object, {} if missing; - for standard input."""
    if given["delay"] is not None and given["run_at"] is not None:
        raise click.UsageError("--in and --at exclude each other")
    if file is not None and payload is not None:
        raise click.UsageError("PAYLOAD and --file exclude each other")
    if file is not None and given["unique_key"] is not None:
        raise click.UsageError("--unique-key names one job; it does not go with --file")
    if file is None and (batch or unique_field is not None):
        raise click.UsageError("--batch and --unique-field go with --file")
    if batch and unique_field is not None:
        raise click.UsageError("--batch and --unique-field exclude each other")
    if callback is not None and not batch:
        raise click.UsageError("--callback goes with --batch")
    if callback_payload is not None and callback is None:
        raise click.UsageError("--callback-payload goes with --callback")
    given["after"] = given["after"] or None
    options: Options = {**given}  # type: ignore[typeddict-item] # each option above is one of them
    text = _read(payload) if file is None else ""
    with client() as db:
        if file is not None and batch:
            after = None if callback is None else Callback(callback, parse_payload(callback_payload or "{}")[0])
            _enqueue_batch(db, type, file, after, options, wait)
        elif file is not None:
            _enqueue_file(db, type, file, options, wait, unique_field)
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
    job = _await(db, id)
    if common().json:
        print_json(job)
    else:
        click.echo(job.state.value)
        if job.state in WELL:
            click.echo(json_text(load_result(job.result, job.result_url)))
    report_failures([job])


def _await(db: Client, id: int) -> JobInfo:
    """The job once it has ended; who waits in vain learns why."""
    try:
        return db.wait(id, WHY_AFTER_S)
    except TimeoutError:
        if db.get(id).state is not State.RUNNING:
            with suppress(DispatcherError):  # who may enqueue need not be one who may read
                note(f"still waiting: {db.explain(id).summary}")
        return db.wait(id)


def _enqueue_file(db: Client, type: str, file: str, options: Options, wait: bool, unique_field: str | None) -> None:
    with _lines(type, file) as chunks:
        if unique_field is None:
            ids = db.enqueue_lines(type, chunks, **options)
            created = len(ids)
        else:
            answers = db.enqueue_unique_lines(type, chunks, unique_field, **options)
            ids, created = [id for id, _ in answers], sum(new for _, new in answers)
    jobs = db.wait(ids) if wait else []
    if common().json:
        print_json({"count": len(ids), "created": created, "ids": ids} | ({"jobs": jobs} if wait else {}))
    else:
        there = f", {len(ids) - created} were there already" if created < len(ids) else ""
        span = f", {ids[0]} to {ids[-1]}" if created and not there else ""
        click.echo(f"{created} jobs enqueued{span}{there}")
    report_failures(jobs)


def _enqueue_batch(db: Client, type: str, file: str, callback: Callback | None, options: Options, wait: bool) -> None:
    with _lines(type, file) as chunks:
        id, count = db.batch_lines(type, chunks, callback=callback, **options)
    if not wait:
        print_json({"id": id, "count": count}) if common().json else click.echo(id)
        return
    if not common().json:
        click.echo(id)
    job = db.wait(id)
    print_batch(db.get_batch(id))
    report_failures([job])


@contextmanager
def _lines(type: str, file: str) -> Iterator[Iterator[list[tuple[int, str]]]]:
    """The file's lines in chunks, with a bar for a person who waits."""
    size = None if file == "-" else _size(file)
    show = size is not None and sys.stderr.isatty()
    bar: Any = click.progressbar(length=size, file=sys.stderr, label=f"enqueue {type}") if show else nullcontext()
    with bar, open_lines(file, bar.update if show else lambda _bytes: None) as chunks:
        yield chunks


def _size(file: str) -> int:
    try:
        return Path(file).stat().st_size
    except OSError as exc:
        fail(f"cannot read {file}: {exc.strerror}")
