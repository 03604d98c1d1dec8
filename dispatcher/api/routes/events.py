"""What becomes of a job, as it happens: server-sent events."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Request
from starlette.responses import Response, StreamingResponse

from dispatcher.api.context import Api, TheApi, TheCaller, authenticate
from dispatcher.api.hub import stamp
from dispatcher.api.problems import ApiError
from dispatcher.api.routes.docs import problems
from dispatcher.api.routes.seeing import JobId, see
from dispatcher.errors import DatabaseUnavailable
from dispatcher.queries.serving import Progress

HEARTBEAT_S = 15.0
RECONNECT_MS = 1000
LONGEST_S = 3600.0  # then a client comes again

router = APIRouter(tags=["jobs"])


@router.get(
    "/jobs/{id}/events",
    summary="State and progress of a job as they happen",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "`state` and `progress` events, until the job has ended.",
            "content": {
                "text/event-stream": {
                    "schema": {
                        "type": "object",
                        "properties": {name: {"type": "string"} for name in ("event", "id", "data", "retry")},
                    },
                    "example": 'event: state\nid: 0f3c\ndata: {"id": 1, "state": "running", "progress": 0.0}\n\n',
                }
            },
        },
        **problems(404),
    },
)
async def events(
    request: Request,
    api: TheApi,
    caller: TheCaller,
    id: JobId,
    last_event_id: Annotated[str | None, Header(max_length=200)] = None,
) -> Response:
    """The first event tells how it is now, unless `Last-Event-ID` says that this is known. A slow reader misses steps,
    not the end. The stream ends with the job; it may end before, then a client connects again."""
    await see(api, caller, id)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(_stream(request, api, id, last_event_id), 200, headers, "text/event-stream")


async def _stream(request: Request, api: Api, id: int, seen: str | None) -> AsyncIterator[str]:
    yield f"retry: {RECONNECT_MS}\n\n"
    last: Progress | None = None
    until = time.monotonic() + LONGEST_S
    with api.hub.subscribe(id) as subscription:
        while not api.hub.closing.is_set() and (left := until - time.monotonic()) > 0:
            changed = await api.hub.wait(subscription, min(left, HEARTBEAT_S))
            if not await _counts(request):
                return
            now = subscription.latest
            if not changed:
                yield ": still here\n\n"
            elif now is not None and now != last and stamp(now) != seen:
                seen = stamp(now)
                yield _event(last, now, seen)
            last = now or last
            if subscription.over:
                return


async def _counts(request: Request) -> bool:
    """Whether the token still does; while the database is away nothing comes that it could not see before."""
    try:
        await authenticate(request)
    except ApiError:
        return False
    except DatabaseUnavailable:
        pass
    return True


def _event(last: Progress | None, now: Progress, name: str) -> str:
    moved = last is None or (last.state, last.attempt) != (now.state, now.attempt)
    return f"event: {'state' if moved else 'progress'}\nid: {name}\ndata: {json.dumps(now._asdict())}\n\n"
