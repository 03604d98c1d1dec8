"""Type `fan_out`: a child of another type for each item of a list, as one batch, and their results in one list.

The job itself runs for moments: it enqueues the batch together with a note of its number, and sleeps. When the batch
has ended, its callback, of the type `fan_out_wake`, runs the job at once; and the job looks now and then by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, Any

from psycopg import Connection, IsolationLevel
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from dispatcher import Callback, Context, EnqueueError, Fail, Job, Snooze, executor

from .connections import stopping
from .fan_out_results import Gathered

FIRST_LOOK_S, LAST_LOOK_S = 2.0, 60.0
FIRST_TRY_S, LAST_TRY_S = 0.2, 5.0  # of the callback, while the job still falls asleep or just looks
MOST_FIXED_BYTES = 256 << 20  # of `fixed` in all children: a payload of a MiB could write a hundred GiB

Count = Annotated[int, Field(ge=1)]


class ChildOptions(BaseModel):
    """What each child is enqueued with; see `enqueue`."""

    model_config = ConfigDict(extra="forbid")

    priority: int | None = Field(default=None, ge=-32768, le=32767)
    max_attempts: int | None = Field(default=None, ge=1, le=32767)
    timeout: float | str | None = None
    """In seconds, or as `15min`."""


class FanOutPayload(BaseModel):
    """What `fan_out` accepts."""

    model_config = ConfigDict(extra="forbid")

    type: str
    """Of the children."""
    items: list[JsonValue] | None = None
    """The payload of each child; with `key` any values."""
    items_from: Count | None = None
    """The job whose result is the list; this job must have been enqueued `after` it."""
    field: str | None = None
    """With `items_from`: the field of the result that is the list."""
    key: str | None = Field(default=None, min_length=1)
    """Each child is given {key: item}, with `chunk` {key: [items]}."""
    chunk: Count | None = None
    """So many items to a child."""
    fixed: dict[str, JsonValue] = {}
    """What each child is given besides."""
    options: ChildOptions = ChildOptions()
    ignore_failures: bool = False
    """End as succeeded although children failed, with null for their results."""

    @model_validator(mode="after")
    def _fits_together(self) -> FanOutPayload:
        if (self.items is None) == (self.items_from is None):
            raise ValueError("give either items or items_from")
        if self.field is not None and self.items_from is None:
            raise ValueError("field goes with items_from")
        if self.chunk is not None and self.key is None:
            raise ValueError("chunk needs key, under which a child finds its items")
        if self.key is not None and self.key in self.fixed:
            raise ValueError("key must not be one of fixed")
        return self


class WakePayload(BaseModel):
    """What `fan_out_wake` accepts."""

    model_config = ConfigDict(extra="forbid")

    job: Count


@executor("fan_out", limit=4, timeout=timedelta(minutes=15), max_attempts=5, retry_timeouts=True, payload=FanOutPayload)
def fan_out(job: Job, ctx: Context) -> Any:
    """Splits a list into jobs of another type and gathers their results."""
    payload: FanOutPayload = job.payload
    with stopping(ctx, ctx.connect()) as conn:
        if job.checkpoint is None:
            items = _items(payload, ctx)
            if not items:
                return {"batch": None, "total": 0, "succeeded": 0, "failed": 0, "results": []}
            _start(payload, items, conn, ctx)
            raise Snooze(FIRST_LOOK_S)
        # Of one instant, should somebody retry the batch meanwhile.
        conn.isolation_level = IsolationLevel.REPEATABLE_READ
        id, count = job.checkpoint["batch"], job.checkpoint["children"]
        state, total, done = _look(conn, id)
        ctx.progress(99 * done / total, f"{done} of {total} jobs done")
        if state == "running":
            raise Snooze(min(LAST_LOOK_S, FIRST_LOOK_S * 1.5 ** min(job.attempt, 20)))
        return Gathered(conn, id, count).ending(payload.ignore_failures)


def _items(payload: FanOutPayload, ctx: Context) -> list[JsonValue]:
    if payload.items_from is None:
        return payload.items or []
    results = ctx.results()
    if payload.items_from not in results:
        raise Fail(f"this job was not enqueued after job {payload.items_from}, or that one has not succeeded")
    found = results[payload.items_from]
    if payload.field is not None:
        found = found.get(payload.field) if isinstance(found, dict) else None
    if not isinstance(found, list):
        what = "result" if payload.field is None else f"result's field {payload.field!r}"
        raise Fail(f"job {payload.items_from}: its {what} is no list")
    return found


def _payloads(payload: FanOutPayload, items: list[JsonValue]) -> Iterator[dict[str, JsonValue]]:
    if payload.chunk is not None and payload.key is not None:
        for start in range(0, len(items), payload.chunk):
            yield {**payload.fixed, payload.key: items[start : start + payload.chunk]}
        return
    for at, item in enumerate(items):
        if payload.key is not None:
            yield {**payload.fixed, payload.key: item}
        elif isinstance(item, dict):
            yield {**payload.fixed, **item}
        else:
            raise Fail(f"item {at} is no object: give key, under which a child finds its item")


def _start(payload: FanOutPayload, items: list[JsonValue], conn: Connection[Any], ctx: Context) -> None:
    """The children and the note of them commit together: there is never a second batch."""
    children = -(-len(items) // (payload.chunk or 1))
    size = children * len(json.dumps(payload.fixed))
    if size > MOST_FIXED_BYTES:
        raise Fail(f"{children} children would get {size} bytes of fixed: put it where they can read it, or use chunk")
    try:
        batch = ctx.enqueue_batch(
            payload.type,
            _payloads(payload, items),
            callback=Callback("fan_out_wake", {"job": ctx.job.id}),
            conn=conn,
            tenant=ctx.job.tenant,
            **payload.options.model_dump(),
        )
    except EnqueueError as exc:
        raise Fail(f"nothing was enqueued: {exc}") from exc
    ctx.checkpoint(conn, {"batch": batch, "children": children})
    conn.commit()
    ctx.progress(0, f"0 of {children} jobs done")


def _look(conn: Connection[Any], id: int) -> tuple[str, int, int]:
    """The batch's state, how many jobs it has, and how many of them have ended."""
    row = conn.execute(
        "select state, total, succeeded + partial + failed + canceled from dispatcher.batches where id = %s", [id]
    ).fetchone()
    if row is None:
        raise Fail(f"batch {id} was removed before its results were gathered")
    state, total, done = row
    return state, total, done


@executor(
    "fan_out_wake", limit=8, timeout=timedelta(minutes=1), max_attempts=20, retry_timeouts=True, payload=WakePayload
)
def fan_out_wake(job: Job, ctx: Context) -> None:
    """Runs a fan_out job whose batch has ended; enqueued by itself."""
    with stopping(ctx, ctx.connect()) as conn:
        # One that has ended runs again if its batch did after it, retried by somebody; not if both were canceled.
        row = conn.execute(
            """
            select j.state, j.state = 'scheduled' or (j.state in ('partial', 'failed', 'canceled')
                                                      and j.finished_at < b.finished_at and not b.cancel_requested)
            from dispatcher.job j join dispatcher.batches b on b.id = (j.checkpoint ->> 'batch')::bigint
            where j.id = %s and j.type = 'fan_out' and j.tenant = %s and b.state <> 'running'
            """,
            [job.payload.job, job.tenant or ""],
        ).fetchone()
        match row:
            case ("running", _):
                raise Snooze(min(LAST_TRY_S, FIRST_TRY_S * job.attempt))
            case (_, True):
                conn.execute("select dispatcher.retry(%s)", [job.payload.job])
