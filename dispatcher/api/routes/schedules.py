"""Schedules: jobs by the calendar. A token of one tenant has schedules of its own."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from dispatcher.api import scope
from dispatcher.api.context import (
    Admin,
    Api,
    Audit,
    IdempotencyKey,
    Runner,
    TheApi,
    TheCaller,
    Writer,
    answer,
    first_answer,
    write,
)
from dispatcher.api.requests import ScheduleRequest
from dispatcher.api.routes.docs import LOCATION, REPLAYED, good, problems
from dispatcher.api.routes.seeing import options_of
from dispatcher.api.tokens import Principal
from dispatcher.api.views import Created, PauseView, ScheduleList
from dispatcher.errors import ScheduleNotFound
from dispatcher.queries import schedules
from dispatcher.queries.schedules import ScheduleInfo
from dispatcher.queries.serving import Answer, get_documents

router = APIRouter(tags=["schedules"])
Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9_.:/-]{1,200}$", description="The name of a schedule.")]
_CHANGE = problems(403, 404, 409)
_OPTIONS = ("priority", "tenant", "unique_key", "max_attempts", "timeout")


@router.get("/schedules", response_model=ScheduleList, summary="All schedules", responses=problems())
async def list_schedules(api: TheApi, caller: TheCaller) -> Any:
    """By name, with their next and their last due time."""
    found = await api.db.run(schedules.list_schedules())
    return {"schedules": [shown for each in found if (shown := scope.shown_schedule(caller.tenant, each))]}


@router.get("/schedules/{name:path}", response_model=ScheduleInfo, summary="One schedule", responses=problems(404))
async def get_schedule(api: TheApi, caller: TheCaller, name: Name) -> Any:
    """With its next and its last due time."""
    return await _see(api, caller, name)


@router.post(
    "/schedules",
    response_model=ScheduleInfo,
    summary="Add a schedule, or change it",
    responses={200: good("The schedule.", headers=LOCATION | REPLAYED), **problems(400, 403, 409, 413)},
)
async def add_schedule(
    request: Request, api: TheApi, caller: Admin, schedule: ScheduleRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    """The leader enqueues a job within a second of each due time, and at most one for each, whoever leads."""
    stored = scope.stored_name(caller.tenant, schedule.name)
    options = options_of(caller, schedule, _OPTIONS)

    async def act(runner: Runner) -> Answer:
        s = schedule
        await runner.run(api.operations.add_schedule(stored, s.cron, s.type, s.payload, s.zone, s.catch_up, options))
        now = next(each for each in await runner.run(schedules.list_schedules()) if each.name == stored)
        shown = scope.shown_schedule(caller.tenant, now)
        assert shown is not None  # its own
        return answer(200, asdict(shown), {"Location": f"/schedules/{s.name}"})

    audit = Audit("schedule.add", stored, schedule.model_dump(mode="json", exclude_defaults=True))
    return await write(request, caller, act, key=idempotency_key, audit=audit)


@router.delete(
    "/schedules/{name:path}",
    status_code=204,
    response_class=Response,
    summary="Remove a schedule",
    responses={204: good("It is removed; its jobs stay."), **_CHANGE},
)
async def remove_schedule(request: Request, api: TheApi, caller: Admin, name: Name) -> Response:
    """Its jobs stay."""
    await _see(api, caller, name)
    stored = scope.known_name(caller.tenant, name)

    async def act(runner: Runner) -> Answer:
        await runner.run(schedules.remove_schedule(stored))
        return answer(204)

    return await write(request, caller, act, audit=Audit("schedule.remove", stored, {}))


@router.post(
    "/schedules/{name:path}/pause",
    response_model=PauseView,
    summary="Pause a schedule",
    responses={200: good("It is paused.", headers=REPLAYED), **_CHANGE},
)
async def pause(
    request: Request, api: TheApi, caller: Admin, name: Name, idempotency_key: IdempotencyKey = None
) -> Response:
    """It fires no more."""
    try:
        await _see(api, caller, name)
    except ScheduleNotFound as exc:
        return await first_answer(request, caller, idempotency_key, exc)
    stored = scope.known_name(caller.tenant, name)

    async def act(runner: Runner) -> Answer:
        return answer(200, {"paused": True, "changed": await runner.run(schedules.pause_schedule(stored))})

    return await write(request, caller, act, key=idempotency_key, audit=Audit("schedule.pause", stored, {}))


@router.post(
    "/schedules/{name:path}/resume",
    response_model=PauseView,
    summary="Resume a schedule",
    responses={200: good("It goes on.", headers=REPLAYED), **_CHANGE},
)
async def resume(
    request: Request, api: TheApi, caller: Admin, name: Name, idempotency_key: IdempotencyKey = None
) -> Response:
    """From now on; what was due meanwhile is not caught up."""
    try:
        await _see(api, caller, name)
    except ScheduleNotFound as exc:
        return await first_answer(request, caller, idempotency_key, exc)
    stored = scope.known_name(caller.tenant, name)

    async def act(runner: Runner) -> Answer:
        return answer(200, {"paused": False, "changed": await runner.run(schedules.resume_schedule(stored))})

    return await write(request, caller, act, key=idempotency_key, audit=Audit("schedule.resume", stored, {}))


@router.post(
    "/schedules/{name:path}/trigger",
    status_code=202,
    summary="Enqueue a schedule's job now",
    responses={202: good("It was enqueued.", Created, LOCATION | REPLAYED), **_CHANGE},
)
async def trigger(
    request: Request, api: TheApi, caller: Writer, name: Name, idempotency_key: IdempotencyKey = None
) -> Response:
    """Paused or not; the next due time stays."""
    try:
        await _see(api, caller, name)
    except ScheduleNotFound as exc:
        return await first_answer(request, caller, idempotency_key, exc)
    stored = scope.known_name(caller.tenant, name)

    async def act(runner: Runner) -> Answer:
        id = await runner.run(schedules.trigger_schedule(stored))
        [document] = await runner.run(get_documents([id]))
        job = json.loads(document.text)
        shown = {name: job[name] for name in ("id", "state", "created_at")}
        return answer(202, {**shown, "created": True}, {"Location": f"/jobs/{id}"})

    return await write(request, caller, act, key=idempotency_key, atomic=True)


async def _see(api: Api, caller: Principal, name: str) -> ScheduleInfo:
    """The schedule, if the caller may see it; what it may not see does not exist."""
    stored = scope.known_name(caller.tenant, name)
    for each in await api.db.run(schedules.list_schedules()):
        if each.name == stored and (shown := scope.shown_schedule(caller.tenant, each)) is not None:
            return shown
    raise ScheduleNotFound(f"there is no schedule {name!r:.200}")
