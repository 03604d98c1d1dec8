"""Batches: jobs of one type under one that stands for them all."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from dispatcher.api.context import (
    REFUSALS,
    IdempotencyKey,
    Runner,
    TheApi,
    TheCaller,
    Writer,
    answer,
    first_answer,
    write,
)
from dispatcher.api.requests import BatchRequest, CallbackRequest
from dispatcher.api.routes.docs import LOCATION, REPLAYED, good, problems
from dispatcher.api.routes.seeing import JobId, check_references, options_of, tenant_of
from dispatcher.api.views import CreatedBatch
from dispatcher.batch import BatchInfo, Callback
from dispatcher.errors import JobNotFound
from dispatcher.queries.serving import Answer

router = APIRouter(tags=["batches"])


@router.post(
    "/batches",
    status_code=202,
    summary="Enqueue a batch",
    responses={
        202: good("It was enqueued.", CreatedBatch, LOCATION | REPLAYED),
        **problems(400, 403, 409, 413, 429),
    },
)
async def create_batch(
    request: Request, api: TheApi, caller: Writer, batch: BatchRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    """All its jobs or none. It is a job itself, under the same id, which can be canceled and run again."""
    options = options_of(caller, batch)
    try:
        await api.pending.take(tenant_of(caller, options), len(batch.payloads))
    except REFUSALS as exc:
        return await first_answer(request, caller, idempotency_key, exc)
    callback = None if batch.callback is None else _callback(batch.callback)

    async def act(runner: Runner) -> Answer:
        await check_references(runner, caller, batch.after, None)
        id = await runner.run(api.operations.batch(batch.type, batch.payloads, callback, options))
        return answer(202, {"id": id, "total": len(batch.payloads)}, {"Location": f"/batches/{id}"})

    return await write(request, caller, act, key=idempotency_key, atomic=True)


@router.get("/batches/{id}", response_model=BatchInfo, summary="Look at a batch", responses=problems(404))
async def get_batch(api: TheApi, caller: TheCaller, id: JobId) -> Any:
    """With exact counts."""
    batch = await api.db.run(api.operations.get_batch(id))
    if caller.tenant not in (None, batch.tenant):
        raise JobNotFound(f"there is no batch {id}")
    return batch


def _callback(given: CallbackRequest) -> Callback:
    options = {
        name: value
        for name in ("priority", "run_at", "delay", "max_attempts", "timeout")
        if (value := getattr(given, name)) is not None
    }
    return Callback(given.type, given.payload, options)
