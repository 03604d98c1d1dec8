"""Type `wait_until`: asks a server or a database again and again until a condition on the answer holds.

Each try is one look. Between two the job is scheduled and holds no thread, and nothing is kept for it but its row: the
looks are its attempts, and its deadline counts from its creation. So neither a restart nor a long outage loses count.
"""

from __future__ import annotations

import random
import time
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from dispatcher import Backoff, Context, Fail, Job, Snooze, executor

from .connections import stopping
from .durations import Duration, is_duration, seconds
from .http_question import Question
from .wait_condition import Condition, short
from .wait_look import Call, Look, Named, look_http, look_json_rpc, look_query

MOST_RESULT = 64_000  # characters of an answer in the result; of a longer one its beginning
SHOWN = 500  # of the last answer in an error
MAX_EVERY_S = 60.0


def _moment(text: str) -> str:
    try:
        known = is_duration(text) or datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        known = False
    if not known:
        raise ValueError("write a duration such as 15min, or a time with its zone such as 2030-01-31T12:00:00Z")
    return text


class WaitUntilPayload(BaseModel):
    """What `wait_until` accepts: one of `http`, `json_rpc` and `query`, and `until`."""

    model_config = ConfigDict(extra="forbid")

    http: Question | None = None
    """The answer is {"status": 200, "body": ...}."""
    json_rpc: Call | None = None
    """The answer is {"result": ...} or {"error": ...}."""
    query: Named | None = None
    """The answer is {"rows": 1, "row": {"column": ...}}."""
    until: Condition
    """The job succeeds when this holds."""
    fail_if: Condition | None = None
    """The job fails for good when this holds; it is looked at first."""
    every: Duration = 5.0
    """The first pause."""
    backoff: float = Field(1.5, ge=1, le=10)
    """Each pause is so many times the one before,"""
    max_every: Duration | None = None
    """up to this: 1min, or `every` where that is longer."""
    jitter: float = Field(0.1, ge=0, le=1)
    """The share by which a pause may be longer or shorter, so that jobs do not look all at once."""
    deadline: Annotated[float, Field(gt=0, le=366 * 86400)] | Annotated[str, AfterValidator(_moment)] = "1h"
    """A duration from the job's creation, or a time with its zone."""
    timeout: float = Field(30.0, ge=0.1, le=3600)
    """Seconds for one look."""
    errors: Literal["wait", "fail"] = "wait"
    """What to do where the look itself fails: look again until the deadline, or fail for good."""

    @model_validator(mode="after")
    def _fits_together(self) -> WaitUntilPayload:
        if sum(asked is not None for asked in (self.http, self.json_rpc, self.query)) != 1:
            raise ValueError("give one of http, json_rpc and query")
        if seconds(self.every) < 0.1:
            raise ValueError("every must be at least 0.1 seconds")
        if self.max_every is not None and seconds(self.max_every) < seconds(self.every):
            raise ValueError("max_every must not be shorter than every")
        return self

    @property
    def what(self) -> str:
        """What is asked, in a few words and without what may be secret."""
        match self:
            case WaitUntilPayload(http=Question() as asked):
                return f"{asked.method} {asked.url.partition('?')[0]}"
            case WaitUntilPayload(json_rpc=Call() as call):
                return f"{' '.join(call.method.split())} at {call.url.partition('?')[0]}"
        return f"query {self.query.name!r}" if self.query else ""

    def pause_s(self, looks: int) -> float:
        """How long to wait after so many looks."""
        first = seconds(self.every)
        longest = max(first, MAX_EVERY_S) if self.max_every is None else seconds(self.max_every)
        chance = random.random()  # noqa: S311 - no secret
        return Backoff(first, self.backoff, longest, self.jitter).delay_s(looks, chance)

    def deadline_s(self, created_at: datetime) -> float:
        """How long to wait in all, from the job's creation."""
        if isinstance(self.deadline, str) and not is_duration(self.deadline):
            return (datetime.fromisoformat(self.deadline) - created_at).total_seconds()
        return seconds(self.deadline)


@executor(
    "wait_until",
    limit=32,
    timeout=timedelta(minutes=1),
    max_attempts=20,  # only of looks that were cut off: neither a snooze nor an error of the endpoint uses one up
    retry_timeouts=True,
    payload=WaitUntilPayload,
)
def wait_until(job: Job, ctx: Context) -> dict[str, Any]:
    """Waits until a condition holds on what a server or a query answers."""
    payload: WaitUntilPayload = job.payload
    # In this order: what connecting takes must not count twice, or the last look comes before the deadline.
    waited_s, started = age_s(job, ctx), time.monotonic()
    look = look_once(job, ctx)
    waited_s += time.monotonic() - started
    deadline_s = payload.deadline_s(job.created_at)
    left_s = deadline_s - waited_s
    if payload.fail_if is not None and judge(look, payload.fail_if):
        raise Fail(f"{payload.what}: fail_if holds: {payload.fail_if.told(look.answer)}; {shown(look)}")
    if judge(look, payload.until):
        return {
            "value": bounded(payload.until.value(look.answer)),
            "answer": bounded(look.answer),
            "polls": job.attempt,
            "waited_s": round(waited_s, 3),
        }
    if look.problem is not None and (look.hopeless or payload.errors == "fail"):
        raise Fail(look.problem)
    told = look.problem or payload.until.told(look.answer)
    if left_s <= 0:
        # Only now, so that one that nobody ran in time still gets its look.
        within = payload.deadline if isinstance(payload.deadline, str) else f"{payload.deadline:g} s"
        looks = "1 look" if job.attempt == 1 else f"{job.attempt} looks"
        said = told if look.problem else f"{told}; {shown(look)}"
        raise Fail(f"{payload.what}: until did not hold by the deadline ({within}), in {looks}: {said}")
    ctx.progress(100 * waited_s / deadline_s, told[:200])
    raise Snooze(min(left_s, max(payload.pause_s(job.attempt), look.pause_s or 0.0)))


def age_s(job: Job, ctx: Context) -> float:
    """Seconds since the job was created, by the database's clock: those of hosts may differ."""
    with stopping(ctx, ctx.connect()) as conn:
        row = conn.execute("select extract(epoch from now() - %s)::float8", [job.created_at]).fetchone()
    return float(row[0]) if row else 0.0


def look_once(job: Job, ctx: Context) -> Look:
    """Asks, whatever is asked."""
    payload: WaitUntilPayload = job.payload
    match payload:
        case WaitUntilPayload(http=Question() as question):
            return look_http(job, ctx, question, payload.timeout)
        case WaitUntilPayload(json_rpc=Call() as call):
            return look_json_rpc(job, ctx, call, payload.timeout)
        case WaitUntilPayload(query=Named() as named):
            return look_query(ctx, named, payload.timeout)
    raise Fail("give one of http, json_rpc and query")


def judge(look: Look, condition: Condition) -> bool:
    """Whether it holds. One with a problem is judged only by a condition that looks where it is told."""
    if look.answer is None:
        return False
    if look.problem is not None and (look.about is None or not condition.looks_at(look.about)):
        return False
    return condition.holds(look.answer)


def shown(look: Look) -> str:
    """The answer, for an error."""
    return f"the last answer: {short(look.answer, SHOWN)}"


def bounded(value: Any) -> Any:
    """As it is, or the beginning of its JSON where that is long."""
    text = short(value, MOST_RESULT)
    return value if len(text) <= MOST_RESULT else text
