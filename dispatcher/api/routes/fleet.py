"""The daemons, who leads, and whether this server can work."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from dispatcher.api.context import Overseer, TheApi, answer, api_of, respond
from dispatcher.api.problems import ApiError, problem
from dispatcher.api.routes.docs import problems
from dispatcher.api.views import ReplicaList
from dispatcher.queries import fleet
from dispatcher.queries.fleet import LeaderInfo

router = APIRouter(tags=["fleet"])


@router.get("/replicas", response_model=ReplicaList, summary="The daemons", responses=problems(403))
async def list_replicas(api: TheApi, _caller: Overseer) -> Any:
    """Living or just gone. Needs a token of all tenants."""
    return {"replicas": await api.db.run(fleet.show_replicas())}


@router.get("/leader", response_model=LeaderInfo, summary="Who leads", responses=problems(403, 404))
async def get_leader(
    api: TheApi,
    _caller: Overseer,
    lease: Annotated[str, Query(min_length=1, max_length=60, pattern="^[!-~]+$")] = "default",
) -> Any:
    """404 while nobody does. Needs a token of all tenants."""
    found = await api.db.run(fleet.show_lease(lease))
    if found is None:
        raise ApiError(404, f"nobody leads under the lease {lease!r}")
    return found


async def healthz(_request: Request) -> Response:
    """The process lives; asks nobody."""
    return respond(answer(200, {"status": "ok"}))


async def readyz(request: Request) -> Response:
    """Whether the database answered lately."""
    away = api_of(request).db.away
    if away is None:
        return respond(answer(200, {"status": "ready"}))
    return problem(503, "the database does not answer", headers={"Retry-After": "1"})
