"""What both clients do, without I/O: checks first, then statements, then what the answer means."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from dispatcher.batch import BatchInfo, Callback
from dispatcher.cron import POLICIES, Cron
from dispatcher.errors import EnqueueError, InvalidOption, InvalidPayload, JobFailed, UnknownType, WrongState
from dispatcher.executor import Registry
from dispatcher.job import JobInfo, State
from dispatcher.options import (
    Duration,
    Options,
    checked_key,
    encode_callback,
    encode_keys,
    encode_options,
    encode_payload,
    misfits,
    parse_payload,
    seconds,
    several,
)
from dispatcher.outcome import encode
from dispatcher.queries import fleet, jobs, schedules
from dispatcher.queries.operation import Operation, Pause
from dispatcher.schema_check import compile_schema

SCHEMA_AGE_S = 5.0  # a type's new schema is heeded after so long
CHUNK = 5_000  # payloads in a statement
FIRST_PAUSE_S, LAST_PAUSE_S = 0.01, 0.5  # between two looks at a job that is waited for
EMPTY_BATCH = "a batch needs at least one job"
_SUSPECT = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")  # NUL, or a surrogate, which may be half of a pair
_POSITION = re.compile(r"payload (\d+): ")

T = TypeVar("T")
Infos = list[JobInfo]
Fits = Callable[[Any], None]
"""Raises InvalidPayload for a value, as JSON has it, that does not fit."""


class Operations:
    """The operations of one client, with the schemas that it has seen lately."""

    def __init__(self, registry: Registry | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry = registry
        self._clock = clock
        self._schemas: dict[str, tuple[float, Any, Fits | None]] = {}

    def enqueue(self, type: str, payload: Any, options: Options) -> Operation[tuple[int, bool]]:
        """(id, whether it is new)."""
        text, encoded = encode_payload(payload), encode_options(options)
        if fits := (yield from self._fits(checked_type(type))):
            fits(json.loads(text))
        return (yield from jobs.enqueue_job(type, text, encoded))

    def prepared(self, type: str, payload: Any, options: Options) -> Operation[tuple[str, str, str]]:
        """A job that is checked and ready to be sent: type, payload and options as JSON texts."""
        text, encoded = encode_payload(payload), encode_options(options)
        if fits := (yield from self._fits(checked_type(type))):
            fits(json.loads(text))
        return type, text, encoded

    def enqueue_text(self, type: str, text: str, options: Options) -> Operation[tuple[int, bool]]:
        """The same for a payload that comes as JSON text."""
        body, stored = parse_payload(text)
        encoded = encode_options(options)
        if fits := (yield from self._fits(checked_type(type))):
            fits(body)
        return (yield from jobs.enqueue_job(type, stored, encoded))

    def enqueue_many(self, type: str, payloads: Iterable[Any], options: Options) -> Operation[list[int]]:
        """One job a payload. All are checked before the first is sent; to be run in one transaction."""
        encoded = encode_options(options)
        texts = yield from self._texts(type, payloads)
        ids: list[int] = []
        for numbers, chunk in _chunks(texts):
            ids += yield from _numbered(jobs.enqueue_many_jobs(type, chunk, encoded), "payload", numbers)
        return ids

    def enqueue_lines(
        self, type: str, chunks: Iterator[list[tuple[int, str]]], options: Options
    ) -> Operation[list[int]]:
        """One job a line of NDJSON, given in chunks of (line number, text); to be run in one transaction."""
        encoded = encode_options(options)
        fits = yield from self._fits(checked_type(type))
        yield from jobs.enqueue_many_jobs(type, "", encoded)  # refuses type and options before anything is read
        ids: list[int] = []
        for numbers, chunk in _checked(chunks, fits):
            ids += yield from _numbered(jobs.enqueue_many_jobs(type, chunk, encoded), "line", numbers)
        return ids

    def enqueue_many_unique(
        self, type: str, payloads: Iterable[Any], unique_keys: Sequence[str | None], options: Options
    ) -> Operation[list[tuple[int, bool]]]:
        """(id, whether it is new) for each payload, in one statement: so no two callers lock each other out."""
        texts = yield from self._texts(type, payloads)
        encoded = encode_options(options, unique_keys=encode_keys(unique_keys, len(texts)))
        send = jobs.enqueue_unique_jobs(type, "\n".join(texts), encoded)
        return (yield from _numbered(send, "payload", range(1, len(texts) + 1)))

    def enqueue_unique_lines(
        self, type: str, chunks: Iterator[list[tuple[int, str]]], field: str, options: Options
    ) -> Operation[list[tuple[int, bool]]]:
        """The same for lines of NDJSON, whose `field` is the key."""
        fits = yield from self._fits(checked_type(type))
        numbers: list[int] = []
        lines: list[str] = []
        keys: list[str] = []
        for found, chunk in _checked(chunks, fits):
            numbers += found
            lines.append(chunk)
            keys += (line_key(number, line, field) for number, line in zip(found, chunk.split("\n"), strict=True))
        encoded = encode_options(options, unique_keys=keys)
        return (yield from _numbered(jobs.enqueue_unique_jobs(type, "\n".join(lines), encoded), "line", numbers))

    def batch(
        self, type: str, payloads: Iterable[Any], callback: str | Callback | None, options: Options
    ) -> Operation[int]:
        """A batch with one job a payload; its id. To be run in one transaction."""
        texts = yield from self._texts(type, payloads)
        id, _ = yield from self._fill(type, _chunks(texts), "payload", callback, options)
        return id

    def batch_lines(
        self, type: str, chunks: Iterator[list[tuple[int, str]]], callback: str | Callback | None, options: Options
    ) -> Operation[tuple[int, int]]:
        """The same for lines of NDJSON: (id, children)."""
        fits = yield from self._fits(checked_type(type))
        return (yield from self._fill(type, _checked(chunks, fits), "line", callback, options))

    def add_schedule(
        self, name: str, cron: str, type: str, payload: Any, zone: str, catch_up: str, options: Options
    ) -> Operation[None]:
        """Adds a schedule, or changes it."""
        check_schedule(cron, zone, catch_up, options)
        text, encoded = encode_payload(payload), encode_options(options, zone=zone, catch_up=catch_up)
        if fits := (yield from self._fits(checked_type(type))):
            fits(json.loads(text))
        yield from schedules.add_schedule(name, cron, type, text, encoded)

    def get_batch(self, id: int) -> Operation[BatchInfo]:
        """One batch."""
        return jobs.get_batch(id)

    def predecessors(self, id: int) -> Operation[Infos]:
        """The jobs after which a job was enqueued."""
        return jobs.list_predecessors(id)

    def _fill(
        self,
        type: str,
        chunks: Iterable[tuple[Sequence[int], str]],
        noun: str,
        callback: str | Callback | None,
        options: Options,
    ) -> Operation[tuple[int, int]]:
        """The first chunk makes the batch, the others join it."""
        given = batch_options(options)
        first = encode(given if callback is None else given | {"callback": (yield from self._callback(callback))})
        id, count, more = 0, 0, ""
        for numbers, chunk in chunks:
            if not chunk:
                continue
            if not id:
                id = yield from _numbered(jobs.enqueue_batch(type, chunk, first), noun, numbers)
                more = encode(given | {"parent": id})
            else:
                yield from _numbered(jobs.enqueue_many_jobs(type, chunk, more), noun, numbers)
            count += len(numbers)
        if not id:
            raise InvalidOption(EMPTY_BATCH)
        return id, count

    def _callback(self, callback: str | Callback) -> Operation[dict[str, Any]]:
        """What SQL knows as the option `callback`, checked as any job."""
        encoded = encode_callback(callback)
        try:
            if fits := (yield from self._fits(checked_type(encoded["type"]))):
                fits(encoded["payload"])
        except (InvalidPayload, UnknownType) as exc:
            raise exc.__class__(f"callback: {exc}") from None
        return encoded

    def _texts(self, type: str, payloads: Iterable[Any]) -> Operation[list[str]]:
        """The payloads as JSON texts, all checked."""
        fits = yield from self._fits(checked_type(type))
        texts: list[str] = []
        for at, payload in enumerate(several(payloads), 1):
            try:
                texts.append(encode_payload(payload))
                if fits:
                    fits(json.loads(texts[-1]))
            except InvalidPayload as exc:
                raise InvalidPayload(f"payload {at}: {exc}") from None
        return texts

    def get(self, id: int) -> Operation[JobInfo]:
        """One job."""
        return jobs.get_job(id)

    def result(self, id: int) -> Operation[JobInfo]:
        """A job that ended well, and so has a result."""
        return with_result((yield from jobs.get_job(id)))

    def wait(self, ids: Sequence[int], timeout: Duration | None) -> Operation[Infos]:
        """The jobs once all have ended; raises TimeoutError, JobNotFound."""
        deadline = None if timeout is None else self._clock() + seconds("timeout", timeout)
        ids = jobs.checked_ids(ids)
        open_ids, pause = set(ids), FIRST_PAUSE_S
        while open_ids:
            states = yield from jobs.get_states(sorted(open_ids))
            if missing := open_ids - states.keys():
                raise jobs.not_found(min(missing))
            open_ids = {id for id, state in states.items() if not state.final}
            left = None if deadline is None else deadline - self._clock()
            if open_ids and left is not None and left <= 0:
                raise not_ended(open_ids)
            if open_ids:
                yield Pause(pause if left is None else min(pause, left))
                pause = min(LAST_PAUSE_S, pause * 1.5)
        found: dict[int, JobInfo] = {}
        for id in dict.fromkeys(ids):
            found[id] = yield from jobs.get_job(id)
        return [found[id] for id in ids]

    def cancel(self, id: int) -> Operation[str]:
        """`canceled`, or `running` where its owner was asked to stop it."""
        left_in = yield from jobs.cancel_job(id)
        if left_in not in (State.CANCELED, State.RUNNING):
            raise WrongState(f"job {id} has already ended, it is {left_in}: it cannot be canceled")
        return left_in

    def retry(self, id: int) -> Operation[str]:
        """The state that it leaves the job in."""
        return jobs.retry_job(id)

    def _fits(self, type: str) -> Operation[Fits | None]:
        """What checks payloads of a type: its model if it is registered here, else its published schema."""
        spec = self._registry.get(type) if self._registry is not None else None
        if spec is not None and spec.payload is not None:
            return _model_check(type, spec.payload.model_validate)
        since, schema, fits = self._schemas.get(type, (None, None, None))
        if since is not None and self._clock() - since < SCHEMA_AGE_S:
            return fits
        known, published = yield from fleet.get_payload_schema(type)
        if not known:
            self._schemas.pop(type, None)  # the enqueueing itself says so, and which ones are known
            return None
        if since is None or published != schema:
            fits = None if published is None else _schema_check(type, published)
        self._schemas[type] = (self._clock(), published, fits)
        return fits


def _chunks(texts: Sequence[str]) -> Iterator[tuple[Sequence[int], str]]:
    """(numbers, payloads) of a statement each; one at least."""
    for start in range(0, len(texts) or 1, CHUNK):
        part = texts[start : start + CHUNK]
        yield range(start + 1, start + 1 + len(part)), "\n".join(part)


def _checked(chunks: Iterator[list[tuple[int, str]]], fits: Fits | None) -> Iterator[tuple[Sequence[int], str]]:
    """The same for lines, each checked."""
    for lines in chunks:
        for number, line in lines:
            check_line(number, line, fits)
        if lines:
            yield [number for number, _ in lines], "\n".join(line for _, line in lines)


def _numbered(operation: Operation[T], noun: str, numbers: Sequence[int]) -> Operation[T]:
    """An error that counts payloads within a chunk counts them in the whole."""
    try:
        return (yield from operation)
    except EnqueueError as exc:
        text = str(exc)
        if match := _POSITION.match(text):
            at = numbers[int(match[1]) - 1]
            raise exc.__class__(f"{noun} {at}: {text[match.end() :]}") from exc
        raise


def line_key(number: int, line: str, field: str) -> str:
    """The unique key in a line; raises InvalidPayload that names the line."""
    value = json.loads(line).get(field)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InvalidPayload(f"line {number}: field {field!r}, the unique key, must be a text or a whole number")
    try:
        return checked_key(str(value))
    except InvalidOption as exc:
        raise InvalidPayload(f"line {number}: field {field!r}: {exc}") from None


def check_line(number: int, line: str, fits: Fits | None) -> None:
    """Raises InvalidPayload, naming the line, for what PostgreSQL would refuse or what does not fit."""
    try:
        body = _decode_line(line)
        if body.__class__ is not dict or _SUSPECT.search(line):
            parse_payload(line)
        if fits:
            fits(body)
    except InvalidPayload as exc:
        raise InvalidPayload(f"line {number}: {exc}") from None
    except (ValueError, RecursionError) as exc:
        raise InvalidPayload(
            f"line {number}: the payload is not JSON: {str(exc) or 'it is nested too deeply'}"
        ) from None


def describe_failure(job: JobInfo) -> str:
    """One line: how the job ended, and its last error."""
    last = job.errors[-1].get("message") if job.errors else None
    tries = "1 attempt" if job.attempt == 1 else f"{job.attempt} attempts"
    return f"job {job.id} ({job.type}) {job.state} after {tries}" + (f": {last}" if last else "")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


_decode_line = json.JSONDecoder(parse_constant=_refuse_constant).decode


def _model_check(type: str, validate: Callable[[Any], Any]) -> Fits:
    def check(body: Any) -> None:
        try:
            validate(body)
        except ValidationError as exc:
            raise InvalidPayload(f"the payload does not fit {type!r}: {misfits(exc)}") from None

    return check


def _schema_check(type: str, schema: Any) -> Fits:
    find = compile_schema(schema)

    def check(body: Any) -> None:
        if misfit := find(body):
            raise InvalidPayload(f"the payload does not fit {type!r}: {misfit}")

    return check


def checked_type(type: Any) -> str:
    """A type's name that may be known; raises UnknownType."""
    if (
        not isinstance(type, str) or not type.isprintable() or len(type) > 200
    ):  # a NUL, half a surrogate: no such type can be known
        raise UnknownType(f"{type!r:.220} cannot be a job type")
    return type


def check_schedule(cron: str, zone: str, catch_up: str, options: Options) -> None:
    """Raises InvalidSchedule, InvalidOption."""
    if misplaced := sorted({"run_at", "delay", "after", "on_failure", "parent"} & set(options)):
        raise InvalidOption(f"option {misplaced[0]!r} makes no sense for a schedule")
    if catch_up not in POLICIES:
        raise InvalidOption(f'option \'catch_up\' must be "skip", "one" or "all"; it is {catch_up!r:.100}')
    Cron.parse(cron, zone)


def batch_options(options: Options) -> dict[str, Any]:
    """The options of a batch's jobs as JSON has them, once: `after` may be an iterator. Raises InvalidOption."""
    if options.get("parent") is not None or options.get("unique_key") is not None:
        raise InvalidOption("options parent and unique_key do not go with a batch")
    given: dict[str, Any] = json.loads(encode_options(options))
    return given


def with_result(job: JobInfo) -> JobInfo:
    """The job, if it ended well and so has a result; raises JobFailed, WrongState."""
    if not job.state.final:
        raise WrongState(f"job {job.id} is {job.state}: it has no result yet")
    if job.state in (State.FAILED, State.CANCELED):
        raise JobFailed(describe_failure(job))
    return job


def not_ended(ids: set[int]) -> TimeoutError:
    """The error for jobs that were waited for in vain."""
    first = ", ".join(str(id) for id in sorted(ids)[:5])
    some = f"job {first} has" if len(ids) == 1 else f"{len(ids)} jobs ({first}{', …' if len(ids) > 5 else ''}) have"
    return TimeoutError(f"{some} not ended in time")
