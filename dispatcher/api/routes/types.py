"""Types of jobs: what holds for them, pause, resume, limits."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from dispatcher.api import scope
from dispatcher.api.context import Audit, IdempotencyKey, Operator, Runner, TheApi, TheCaller, answer, write
from dispatcher.api.problems import ApiError
from dispatcher.api.requests import LimitRequest
from dispatcher.api.routes.docs import REPLAYED, good, problems
from dispatcher.api.views import PauseView, TypeList, TypeView
from dispatcher.operations import checked_type
from dispatcher.queries import fleet
from dispatcher.queries.fleet import TypeInfo
from dispatcher.queries.serving import Answer, count_by_state

router = APIRouter(tags=["types"])
TypeName = Annotated[str, Path(pattern=r"^[A-Za-z0-9_.:/-]{1,200}$", description="The name of a type.")]
_CHANGE = problems(403, 404, 409)


@router.get("/types", response_model=TypeList, summary="All types", responses=problems())
async def list_types(api: TheApi, caller: TheCaller) -> Any:
    """As the replicas have published them, with what an operator said, and how many unfinished jobs there are."""
    types = await api.db.run(fleet.list_types())
    counts = await api.db.run(count_by_state(caller.tenant))
    return {"types": [_view(scope.shown_type(caller.tenant, each), counts.get(each.name, {})) for each in types]}


@router.post(
    "/types/{type:path}/pause",
    response_model=PauseView,
    summary="Pause a type",
    responses={200: good("It is paused.", headers=REPLAYED), **_CHANGE},
)
async def pause(
    request: Request, api: TheApi, caller: Operator, type: TypeName, idempotency_key: IdempotencyKey = None
) -> Response:
    """No job of it starts any more; those that run go on. Needs an admin's token of all tenants."""
    await _known(api, type)

    async def act(runner: Runner) -> Answer:
        return answer(200, {"paused": True, "changed": await runner.run(fleet.pause_type(checked_type(type)))})

    return await write(request, caller, act, key=idempotency_key, audit=Audit("type.pause", type, {}))


@router.post(
    "/types/{type:path}/resume",
    response_model=PauseView,
    summary="Resume a type",
    responses={200: good("It goes on.", headers=REPLAYED), **_CHANGE},
)
async def resume(
    request: Request, api: TheApi, caller: Operator, type: TypeName, idempotency_key: IdempotencyKey = None
) -> Response:
    """Jobs of it start again. Needs an admin's token of all tenants."""
    await _known(api, type)

    async def act(runner: Runner) -> Answer:
        return answer(200, {"paused": False, "changed": await runner.run(fleet.resume_type(checked_type(type)))})

    return await write(request, caller, act, key=idempotency_key, audit=Audit("type.resume", type, {}))


@router.post(
    "/types/{type:path}/limit",
    response_model=TypeView,
    summary="Change a type's limits",
    responses={200: good("The type as it is now.", headers=REPLAYED), **problems(400, 403, 404, 409, 413)},
)
async def set_limit(
    request: Request,
    api: TheApi,
    caller: Operator,
    type: TypeName,
    limits: LimitRequest,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """What is given is changed; null gives way to what the code says. Needs an admin's token of all tenants."""
    await _known(api, type)
    changes = limits.model_dump(exclude_unset=True)
    tenant = changes.pop("tenant", None)

    async def act(runner: Runner) -> Answer:
        if changes:
            await runner.run(fleet.set_limit(checked_type(type), changes, tenant))
        now = next(each for each in await runner.run(fleet.list_types()) if each.name == type)
        counts = await runner.run(count_by_state(None))
        return answer(200, TypeView(**_view(now, counts.get(type, {}))).model_dump(mode="json"))

    details = {**changes, **({} if tenant is None else {"tenant": tenant})}
    return await write(request, caller, act, key=idempotency_key, audit=Audit("type.limit", type, details))


@router.get("/types/{type:path}", response_model=TypeView, summary="One type", responses=problems(404))
async def get_type(api: TheApi, caller: TheCaller, type: TypeName) -> Any:
    """With its payload's JSON Schema."""
    for each in await api.db.run(fleet.list_types()):
        if each.name == type:
            counts = await api.db.run(count_by_state(caller.tenant))
            return _view(scope.shown_type(caller.tenant, each), counts.get(type, {}))
    raise _unknown(type)


async def _known(api: Any, type: str) -> None:
    if all(each.name != type for each in await api.db.run(fleet.list_types())):
        raise _unknown(type)


def _unknown(type: str) -> ApiError:
    return ApiError(404, f"there is no type {type!r:.200}")


def _view(type: TypeInfo, counts: dict[str, int]) -> dict[str, Any]:
    own = {name: getattr(type, name) for name in TypeView.model_fields if name not in ("counts", "timeout")}
    return {**own, "timeout": type.timeout.total_seconds(), "counts": counts}
