"""Calls about jobs and batches."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from dispatcher.batch import BatchInfo, Callback
from dispatcher.errors import EnqueueError, InvalidOption, InvalidPayload, PayloadTooLarge, UnknownType
from dispatcher.executor import TYPE_NAME
from dispatcher.filters import MAX_ID, Wanted, checked_limit
from dispatcher.http.exchange import Call, Request, in_path
from dispatcher.http.reading import explanation, fill, read
from dispatcher.job import JobInfo, Page
from dispatcher.operations import EMPTY_BATCH, batch_options, checked_type, not_ended, with_result
from dispatcher.options import (
    Duration,
    Options,
    encode_callback,
    encode_keys,
    encode_options,
    encode_payload,
    seconds,
    several,
)
from dispatcher.outcome import encode
from dispatcher.queries.explain import Explanation
from dispatcher.queries.jobs import checked_id, checked_ids, not_found, whole
from dispatcher.queries.operation import Pause

MOST_JOBS = 10_000  # that the server takes at once
MOST_OF_PAGE = 500
LONGEST_CURSOR = 10**18  # digits that the server takes
LOOK_S = 25.0  # a long poll: proxies hang up on what is silent for 30 or 60 s
EARLY_PAUSE_S = 0.5  # after one that came back early, as from a server that is about to stop
_POSITION = re.compile(r"(?:job )?(\d+)(?:: |\.)")

T = TypeVar("T")
Infos = list[JobInfo]
Ids = list[int]
Flags = list[bool]


class JobCalls:
    """For one client."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock

    def enqueue(self, type: str, payload: Any, options: Options) -> Call[tuple[int, bool]]:
        """(id, whether it is new)."""
        text, given = encode_payload(payload), _options(options)
        answer = yield Request.post("/jobs", _job(checked_type(type), given, text))
        return read(answer, lambda body: (int(body["id"]), bool(body["created"])))

    def enqueue_many(self, type: str, payloads: Iterable[Any], options: Options) -> Call[list[int]]:
        """One job a payload, all or none; ids in their order."""
        given = _many(options)
        texts = _texts(payloads)
        if not texts:
            yield from self._known(checked_type(type))
            return []
        ids, _ = yield from self._send([_job(checked_type(type), given, text) for text in texts])
        return ids

    def enqueue_many_unique(
        self, type: str, payloads: Iterable[Any], unique_keys: Sequence[str | None], options: Options
    ) -> Call[list[tuple[int, bool]]]:
        """(id, whether it is new) for each payload, in their order."""
        texts = _texts(payloads)
        keys = encode_keys(unique_keys, len(texts))
        given = _many(options)
        if not texts:
            yield from self._known(checked_type(type))
            return []
        jobs = [
            _job(checked_type(type), given if key is None else {**given, "unique_key": key}, text)
            for key, text in zip(keys, texts, strict=True)
        ]
        ids, new = yield from self._send(jobs)
        return list(zip(ids, new, strict=True))

    def batch(self, type: str, payloads: Iterable[Any], callback: str | Callback | None, options: Options) -> Call[int]:
        """A batch with one job a payload; its id."""
        texts = _texts(payloads)
        given = batch_options(options)
        if callback is not None:
            encoded = encode_callback(callback)
            checked_type(encoded["type"])
            given["callback"] = {"type": encoded["type"], "payload": encoded["payload"], **encoded["options"]}
        if not texts:
            raise InvalidOption(EMPTY_BATCH)
        body = f'{encode({"type": checked_type(type), **given})[:-1]},"payloads":[{",".join(texts)}]}}'
        return read((yield Request.post("/batches", _bounded(texts, body))), lambda body: int(body["id"]))

    def get_batch(self, id: int) -> Call[BatchInfo]:
        """One batch."""
        answer = yield Request.get(f"/batches/{_path_id(id)}")
        return read(answer, lambda body: fill(BatchInfo, body))

    def get(self, id: int) -> Call[JobInfo]:
        """One job."""
        return self._look(id, 0.0)

    def result(self, id: int) -> Call[JobInfo]:
        """A job that ended well, and so has a result."""
        return with_result((yield from self.get(id)))

    def wait(self, ids: Sequence[int], timeout: Duration | None) -> Call[Infos]:
        """The jobs once all have ended, each as it was then; raises TimeoutError, JobNotFound."""
        deadline = None if timeout is None else self._clock() + seconds("timeout", timeout)
        ids = checked_ids(ids)
        found: dict[int, JobInfo] = {}
        for id in sorted(set(ids)):
            found[id] = yield from self._look(id, 0.0)  # all of them first: one may not exist
        while open_ids := {id for id, job in found.items() if not job.state.final}:
            left = None if deadline is None else deadline - self._clock()
            if left is not None and left <= 0:
                raise not_ended(open_ids)
            asked, wait_s, id = self._clock(), LOOK_S if left is None else min(LOOK_S, left), min(open_ids)
            found[id] = yield from self._look(id, wait_s, patience_s=left)
            early_s = wait_s - (self._clock() - asked)
            if not found[id].state.final and early_s > EARLY_PAUSE_S:
                yield Pause(EARLY_PAUSE_S)
        return [found[id] for id in ids]

    def cancel(self, id: int) -> Call[str]:
        """`canceled`, or `running` where its owner was asked to stop it."""
        return read((yield Request.post(f"/jobs/{_path_id(id)}/cancel")), _state)

    def retry(self, id: int) -> Call[str]:
        """The state that it leaves the job in."""
        return read((yield Request.post(f"/jobs/{_path_id(id)}/retry")), _state)

    def explain(self, id: int) -> Call[Explanation]:
        """Why a job does not run."""
        return read((yield Request.get(f"/jobs/{_path_id(id)}/explain")), explanation)

    def page(self, wanted: Wanted, *, before: int | None, limit: int) -> Call[Page]:
        """One page, of jobs with lower ids than `before`."""
        return (yield from _page(_filters(wanted), before, checked_limit(limit)))

    def list(self, wanted: Wanted, *, before: int | None, limit: int) -> Call[Infos]:
        """The newest, over as many pages as it takes."""
        checked_limit(limit, least=0)
        filters = _filters(wanted)
        jobs: Infos = []
        following = before
        while len(jobs) < limit:
            page = yield from _page(filters, following, limit - len(jobs))
            jobs += page.jobs
            if (following := page.next) is None:
                break
        return jobs

    def _look(self, id: int, wait_s: float, *, patience_s: float | None = None) -> Call[JobInfo]:
        params = [("wait", f"{max(1, round(wait_s * 1000))}ms")] if wait_s > 0 else []
        answer = yield Request.get(f"/jobs/{_path_id(id)}", params, wait_s=wait_s, patience_s=patience_s)
        return read(answer, lambda body: fill(JobInfo, body))

    def _known(self, type: str) -> Call[None]:
        """Refuses a type that is not, where there is no job that the server would refuse."""
        read((yield Request.get(f"/types/{in_path(type)}")), _nothing, missing=UnknownType)

    def _send(self, jobs: Sequence[str]) -> Call[tuple[Ids, Flags]]:
        answer = yield Request.post("/jobs:batch", _bounded(jobs, f"[{','.join(jobs)}]"))
        try:
            return read(answer, lambda body: ([int(id) for id in body["ids"]], [bool(new) for new in body["new"]]))
        except EnqueueError as exc:
            raise _numbered(exc) from None


def _options(options: Options) -> dict[str, Any]:
    given: dict[str, Any] = json.loads(encode_options(options))
    return given


def _many(options: Options) -> dict[str, Any]:
    if options.get("unique_key") is not None:
        raise InvalidOption("option 'unique_key' names one job; for many there is enqueue_many_unique")
    return _options(options)


def _job(type: str, options: dict[str, Any], payload: str) -> str:
    return f'{encode({"type": type, **options})[:-1]},"payload":{payload}}}'


def _texts(payloads: Iterable[Any]) -> list[str]:
    """The payloads as JSON texts; an error counts them from 1."""
    texts: list[str] = []
    for at, payload in enumerate(several(payloads), 1):
        try:
            texts.append(encode_payload(payload))
        except InvalidPayload as exc:
            raise InvalidPayload(f"payload {at}: {exc}") from None
    return texts


def _bounded(jobs: Sequence[str], body: str) -> str:
    if len(jobs) > MOST_JOBS:
        raise InvalidOption(f"the HTTP API takes up to {MOST_JOBS} jobs at once; these are {len(jobs)}")
    return body


def _numbered(exc: EnqueueError) -> EnqueueError:
    """The server counts jobs from 0, and also where the error is not in a payload."""
    text = str(exc)
    if not (match := _POSITION.match(text)):
        return exc
    of_payload = isinstance(exc, InvalidPayload | PayloadTooLarge)
    return exc.__class__((f"payload {int(match[1]) + 1}: " if of_payload else "") + text[match.end() :])


def _path_id(id: int) -> int:
    if not (checked := checked_id(id)):
        raise not_found(id)
    return checked


def _filters(wanted: Wanted) -> list[tuple[str, str]] | None:
    """As the query has them; None where no job can be meant. "So long ago" is counted from our own clock."""
    if wanted.type is not None and not TYPE_NAME.fullmatch(wanted.type):
        return None
    params = [("state", state.value) for state in wanted.states or ()]
    params += [(name, text) for name in ("type", "tenant", "kind") if (text := getattr(wanted, name)) is not None]
    times = {"since": wanted.since, "until": wanted.until}
    params += [(name, _moment(time).isoformat()) for name, time in times.items() if time is not None]
    if wanted.parent is not None:
        if not 1 <= (parent := whole("parent", wanted.parent)) <= MAX_ID:
            return None
        params.append(("parent", str(parent)))
    return params


def _moment(time: datetime | float) -> datetime:
    return time if isinstance(time, datetime) else datetime.now(UTC) - timedelta(seconds=time)


def _page(filters: list[tuple[str, str]] | None, before: int | None, limit: int) -> Call[Page]:
    cursor = MAX_ID if before is None else whole("before", before)
    if filters is None or cursor < 1:
        return Page([], None)
    params = [*filters, ("limit", str(min(limit, MOST_OF_PAGE)))]
    if cursor < LONGEST_CURSOR:
        params.append(("cursor", str(cursor)))
    return read((yield Request.get("/jobs", params)), _as_page)


def _as_page(body: Any) -> Page:
    following = body["next"]
    return Page([fill(JobInfo, one) for one in body["jobs"]], None if following is None else int(following))


def _state(body: Any) -> str:
    return str(body["state"])


def _nothing(_body: Any) -> None:
    """What a good answer tells is of no interest."""
