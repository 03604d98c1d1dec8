"""Many jobs in one call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, TypeVar

from fastapi import APIRouter, Header, Request
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError
from starlette.responses import Response

from dispatcher.api.context import REFUSALS, Api, IdempotencyKey, Runner, TheApi, Writer, answer, first_answer, write
from dispatcher.api.problems import ApiError
from dispatcher.api.requests import MOST_JOBS, JobRequest
from dispatcher.api.routes.docs import REPLAYED, good, problems
from dispatcher.api.routes.seeing import check_references, options_of, tenant_of
from dispatcher.api.views import CreatedMany
from dispatcher.errors import EnqueueError
from dispatcher.options import Options
from dispatcher.queries.serving import Answer

router = APIRouter(tags=["jobs"])
T = TypeVar("T")
_REQUEST: TypeAdapter[JobRequest] = TypeAdapter(JobRequest)
_REQUESTS: TypeAdapter[list[JobRequest]] = TypeAdapter(list[JobRequest])
_LIST = {
    "type": "array",
    "items": {"$ref": "#/components/schemas/JobRequest"},
    "minItems": 1,
    "maxItems": MOST_JOBS,
}
_BODY = {
    "required": True,
    "description": "A list of jobs, or a job a line.",
    "content": {
        "application/json": {"schema": _LIST, "example": [{"type": "hello"}]},
        "application/x-ndjson": {"schema": _LIST},
    },
}


@router.post(
    "/jobs:batch",
    status_code=202,
    summary="Enqueue many jobs, all or none",
    openapi_extra={"requestBody": _BODY},
    responses={202: good("They were enqueued.", CreatedMany, REPLAYED), **problems(400, 403, 409, 413, 415, 429)},
)
async def create_jobs(
    request: Request,
    api: TheApi,
    caller: Writer,
    content_type: Annotated[str, Header(include_in_schema=False)] = "",
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Up to 10,000 as a JSON list, or as NDJSON, a job a line. An error names the first that is wrong, from 0."""
    jobs = _read(content_type, await request.body())
    options = [options_of(caller, job) for job in jobs]
    try:
        for tenant, count in Counter(tenant_of(caller, one) for one in options).items():
            await api.pending.take(tenant, count)
    except REFUSALS as exc:
        return await first_answer(request, caller, idempotency_key, exc)

    async def act(runner: Runner) -> Answer:
        made = [(0, False)] * len(jobs)
        first = _first_with_their_key(jobs)
        for places in _groups(jobs, options, [place for place, its_first in enumerate(first) if its_first == place]):
            job, shared = jobs[places[0]], options[places[0]]
            await check_references(runner, caller, job.after, job.parent)
            answers = await _enqueue(
                api, runner, job.type, shared, [(place, jobs[place], options[place]) for place in places]
            )
            for place, one in zip(places, answers, strict=True):
                made[place] = one
        new = [made[place][1] and its_first == place for place, its_first in enumerate(first)]
        return answer(202, {"ids": [made[its_first][0] for its_first in first], "new": new, "created": sum(new)})

    return await write(request, caller, act, key=idempotency_key, atomic=True)


async def _enqueue(
    api: Api, runner: Runner, type: str, shared: Options, jobs: Sequence[tuple[int, JobRequest, Options]]
) -> Iterable[tuple[int, bool]]:
    """Jobs of one type whose options differ at most in their unique keys: (id, whether it is new)."""
    payloads = [job.payload for _, job, _ in jobs]
    keys = [options.get("unique_key") for _, _, options in jobs]
    plain = Options(**{name: value for name, value in shared.items() if name != "unique_key"})  # type: ignore[typeddict-item]
    try:
        if any(keys):
            return await runner.run(api.operations.enqueue_many_unique(type, payloads, keys, plain))
        return [(id, True) for id in await runner.run(api.operations.enqueue_many(type, payloads, plain))]
    except EnqueueError as exc:
        number, colon, rest = str(exc).removeprefix("payload ").partition(": ")
        if colon and number.isdecimal():
            raise exc.__class__(f"job {jobs[int(number) - 1][0]}: {rest}") from None
        raise exc.__class__(f"job {jobs[0][0]}: {exc}") from None


def _first_with_their_key(jobs: Sequence[JobRequest]) -> list[int]:
    """For each job the place of the first one with its type and unique key, which stands for it."""
    first: dict[tuple[str, str], int] = {}
    return [
        place if job.unique_key is None else first.setdefault((job.type, job.unique_key), place)
        for place, job in enumerate(jobs)
    ]


def _groups(jobs: Sequence[JobRequest], options: Sequence[Options], places: Iterable[int]) -> Iterable[list[int]]:
    """Places of jobs that one statement can enqueue, in the order of their first one; then those with unique keys, in
    an order that is the same for every caller, so that they seldom lock each other out."""
    groups: dict[str, list[int]] = {}
    for place in places:
        named = sorted((name, str(value)) for name, value in options[place].items() if name != "unique_key")
        groups.setdefault(f"{jobs[place].type} {named}", []).append(place)

    def least(group: list[int]) -> tuple[str, str]:
        keyed = (jobs[place] for place in group if jobs[place].unique_key is not None)
        return min(((job.type, job.unique_key or "") for job in keyed), default=("", ""))

    return sorted(groups.values(), key=least)


def _read(content_type: str, body: bytes) -> list[JobRequest]:
    kind = content_type.partition(";")[0].strip().lower()
    if kind in ("application/x-ndjson", "application/ndjson"):
        lines = [line for line in body.split(b"\n") if line.strip()]
        _check_count(len(lines))
        return [_parse(_REQUEST, line, number) for number, line in enumerate(lines)]
    if kind != "application/json":
        raise ApiError(415, "send application/json, a list, or application/x-ndjson, a job a line")
    jobs = _parse(_REQUESTS, body)
    _check_count(len(jobs))
    return jobs


def _check_count(count: int) -> None:
    if not 1 <= count <= MOST_JOBS:
        raise ApiError(422, f"give 1 to {MOST_JOBS} jobs; these are {count}")


def _parse(kind: TypeAdapter[T], text: bytes, *place: int) -> T:
    try:
        return kind.validate_json(text)
    except ValidationError as exc:
        found = exc.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError([{**one, "loc": ("body", *place, *one["loc"])} for one in found]) from None
