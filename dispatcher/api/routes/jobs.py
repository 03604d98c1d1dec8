"""Jobs: create, look at, list, cancel, run again, explain."""

from __future__ import annotations

import hashlib
import re
import time
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from dispatcher.api import scope
from dispatcher.api.context import (
    REFUSALS,
    Api,
    IdempotencyKey,
    Runner,
    TheApi,
    TheCaller,
    Writer,
    answer,
    api_of,
    authenticate,
    digest,
    first_answer,
    respond,
    respond_once,
    write,
)
from dispatcher.api.problems import ApiError
from dispatcher.api.requests import MAX_ID, JobRequest, Moment, Name, TypeName
from dispatcher.api.routes.docs import ETAG, LOCATION, REPLAYED, good, problems
from dispatcher.api.routes.seeing import JobId, check_references, options_of, see, tenant_of
from dispatcher.api.views import Created, JobPage, JobView, StateView
from dispatcher.errors import JobNotFound
from dispatcher.filters import Wanted
from dispatcher.job import FINAL, State
from dispatcher.outcome import encode
from dispatcher.queries.explain import Explanation, explain_job
from dispatcher.queries.listing import page_documents
from dispatcher.queries.serving import Answer, Document, EnqueueRequest
from dispatcher.settings import parse_duration

LONGEST_WAIT_S = 60.0
STILL_THERE_S = 1.0  # between two looks whether who waits has hung up
MOST = 500
# Jobs with these meet others, so they have a transaction of their own.
ALONE = frozenset({"unique_key", "after", "parent"})

router = APIRouter(tags=["jobs"])


@router.post(
    "/jobs",
    status_code=202,
    summary="Enqueue a job",
    responses={
        202: good("It was enqueued.", Created, LOCATION | REPLAYED),
        200: good("An unfinished job has the unique key.", Created, LOCATION | REPLAYED),
        **problems(400, 403, 409, 413, 429),
    },
)
async def create_job(
    request: Request, api: TheApi, caller: Writer, job: JobRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    """Answers as soon as the job is in the database: it ends in a final state, whatever dies."""
    options = options_of(caller, job)
    try:
        await check_references(api.db, caller, job.after, job.parent)
        given = EnqueueRequest(*await api.db.run(api.operations.prepared(job.type, job.payload, options)))
        await api.pending.take(tenant_of(caller, options), 1)
    except REFUSALS as exc:
        return await first_answer(request, caller, idempotency_key, exc)
    if idempotency_key is not None:
        given = given._replace(tenant=caller.tenant or "", key=idempotency_key, digest=await digest(request))
    send = api.jobs.enqueue_alone if options.keys() & ALONE else api.jobs.enqueue
    return respond_once(*await send(given))


@router.get(
    "/jobs",
    response_model=JobPage,
    summary="List jobs",
    responses={200: good("A page.", headers={"Link": {"schema": {"type": "string"}}}), **problems()},
)
async def list_jobs(
    request: Request,
    api: TheApi,
    caller: TheCaller,
    type: TypeName | None = None,
    state: Annotated[list[State] | None, Query(description="One or several.")] = None,
    tenant: Name | None = None,
    parent: Annotated[int | None, Query(ge=1, le=MAX_ID, description="The id of a batch.")] = None,
    kind: Annotated[Name | None, Query(description="Of the last error, such as `timeout`.")] = None,
    since: Annotated[Moment | None, Query(description="Of the job's end or, before that, of its creation.")] = None,
    until: Moment | None = None,
    cursor: Annotated[
        str | None, Query(pattern=r"^[1-9][0-9]{0,17}$", description="The `next` of the page before.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MOST)] = 50,
) -> Response:
    """The newest first. A page is found in milliseconds however many jobs there are, so it may be short, or empty,
    while `next` says that there is more. Jobs that come and go meanwhile are not shown twice and hide no others."""
    if caller.tenant is not None and tenant not in (None, caller.tenant):
        return respond(answer(200, {"jobs": [], "next": None}))
    wanted = Wanted.make(
        type=type,
        state=state or None,
        tenant=caller.tenant or tenant,
        kind=kind,
        since=since,
        until=until,
        parent=parent,
    )
    before = None if cursor is None else int(cursor)
    own = caller.tenant is not None
    texts, following = await api.db.run(page_documents(wanted, before=before, limit=limit, own=own))
    shown = "null" if following is None else f'"{following}"'
    headers = {}
    if following is not None:
        headers["Link"] = f'<{request.url.include_query_params(cursor=following)}>; rel="next"'
    return Response(f'{{"jobs":[{",".join(texts)}],"next":{shown}}}', 200, headers, "application/json")


@router.get(
    "/jobs/{id}",
    response_model=JobView,
    summary="Look at a job",
    responses={200: good("The job.", headers=ETAG), 304: good("It is as it was.", headers=ETAG), **problems(404)},
)
async def get_job(
    request: Request,
    api: TheApi,
    caller: TheCaller,
    id: JobId,
    wait: Annotated[
        str | None,
        Query(
            pattern=r"^[0-9]{1,5}(ms|s|min)?$", description="Until it has ended, at most so long: `30s`; 60 s at most."
        ),
    ] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """With `wait` the answer comes once the job has ended, or when the time is over, whatever its state is then."""
    found = await see(api, caller, id)
    if wait is not None and found.state not in FINAL:
        await _until_ended(request, api, id, min(LONGEST_WAIT_S, parse_duration(wait).total_seconds()))
        await authenticate(request)
        found = await see(api, caller, id)
    return _show(found, if_none_match)


class PlainRead(Route):
    """GET /jobs/{id} without a query: the same answer at half the cost, since nothing is to be checked but the id.

    It stands before the route that the OpenAPI document shows, which has the query.
    """

    def __init__(self) -> None:
        super().__init__("/jobs/{id:int}", _read_plainly, include_in_schema=False)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Not what has a query, nor another method."""
        if scope["type"] != "http" or scope["method"] != "GET" or scope["query_string"]:
            return Match.NONE, {}
        return super().matches(scope)


async def _read_plainly(request: Request) -> Response:
    caller, id = await authenticate(request), int(request.path_params["id"])
    if not 1 <= id <= MAX_ID:
        raise JobNotFound(f"there is no job {id}")
    return _show(await see(api_of(request), caller, id), request.headers.get("if-none-match"))


def _show(found: Document, if_none_match: str | None) -> Response:
    body = found.text.encode()
    tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    if if_none_match is not None and _matches(if_none_match, tag):
        return Response(status_code=304, headers={"ETag": tag})
    return Response(body, 200, {"ETag": tag, "Cache-Control": "no-cache"}, "application/json")


@router.get(
    "/jobs/{id}/result",
    response_model=Any,
    summary="The result of a job",
    responses={
        200: good("What its executor returned."),
        303: good("The result is in the store.", headers=LOCATION),
        **problems(404, 409),
    },
)
async def get_result(api: TheApi, caller: TheCaller, id: JobId) -> Response:
    """404 until there is one; 409 for a job that failed or was canceled."""
    job = await see(api, caller, id)
    if job.state not in FINAL:
        raise ApiError(404, f"job {id} is {job.state}: it has no result yet")
    if job.state in (State.FAILED, State.CANCELED):
        raise ApiError(409, f"job {id} {'failed' if job.state == State.FAILED else 'was canceled'}: it has no result")
    shown = JobView.model_validate_json(job.text)
    if shown.result is None and shown.result_url is not None:
        return Response(status_code=303, headers={"Location": shown.result_url})
    return Response(encode(shown.result), 200, media_type="application/json")


@router.post(
    "/jobs/{id}/cancel",
    response_model=StateView,
    summary="Cancel a job",
    responses={200: good("Canceled, or asked to stop.", headers=REPLAYED), **problems(403, 404, 409)},
)
async def cancel_job(
    request: Request, api: TheApi, caller: Writer, id: JobId, idempotency_key: IdempotencyKey = None
) -> Response:
    """`running`: its owner was asked to stop it. Of a batch, all its open jobs."""
    try:
        await see(api, caller, id)
    except JobNotFound as exc:
        return await first_answer(request, caller, idempotency_key, exc)

    async def act(runner: Runner) -> Answer:
        return answer(200, {"id": id, "state": await runner.run(api.operations.cancel(id))})

    return await _changed(api, id, await write(request, caller, act, key=idempotency_key))


@router.post(
    "/jobs/{id}/retry",
    response_model=StateView,
    summary="Run a job again",
    responses={200: good("It is to run again.", headers=REPLAYED), **problems(403, 404, 409)},
)
async def retry_job(
    request: Request, api: TheApi, caller: Writer, id: JobId, idempotency_key: IdempotencyKey = None
) -> Response:
    """An ended job again, a scheduled one at once; of a batch, its failed and canceled jobs."""
    try:
        await see(api, caller, id)
    except JobNotFound as exc:
        return await first_answer(request, caller, idempotency_key, exc)

    async def act(runner: Runner) -> Answer:
        return answer(200, {"id": id, "state": await runner.run(api.operations.retry(id))})

    return await _changed(api, id, await write(request, caller, act, key=idempotency_key))


@router.get("/jobs/{id}/explain", response_model=Explanation, summary="Why a job does not run", responses=problems(404))
async def explain(api: TheApi, caller: TheCaller, id: JobId) -> Any:
    """What it waits for, which limit is reached, whether anybody leads; the most decisive reason first."""
    await see(api, caller, id)
    return scope.shown_explanation(caller.tenant, await api.db.run(explain_job(id)))


async def _changed(api: Api, id: int, response: Response) -> Response:
    api.hub.look(id)
    return response


async def _until_ended(request: Request, api: Api, id: int, seconds: float) -> None:
    """Or until the caller has hung up."""
    with api.hub.subscribe(id) as subscription:
        until = time.monotonic() + seconds
        while not subscription.over and not api.hub.closing.is_set() and (left := until - time.monotonic()) > 0:
            if not await api.hub.wait(subscription, min(left, STILL_THERE_S)) and await request.is_disconnected():
                return


def _matches(given: str, tag: str) -> bool:
    return given.strip() == "*" or tag in re.split(r"\s*,\s*", given.replace("W/", "").strip())
