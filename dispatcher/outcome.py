"""How an execution ended, and what becomes of its job: decided here, without I/O."""

from __future__ import annotations

import json
import re
import traceback
from dataclasses import dataclass
from typing import Any, NamedTuple

from dispatcher.context import Interrupted
from dispatcher.errors import ResultTooLarge
from dispatcher.executor import Cancel, Fail, Partial, Retry, Snooze
from dispatcher.job import CancelReason, Job, State
from dispatcher.retry import RetryPolicy

MAX_MESSAGE = 10_000  # characters of an error kept in the row
MAX_TRACE = 20_000
MAX_DEPTH = 500  # levels of JSON, as SQL has it: Python reads about 900, fewer where its own calls are deep
MAX_DELAY_S = 100 * 365 * 86400.0  # a later time is no plan, and Python cannot read it from the row
STUCK = "the job outlived its timeout and had not come back by then"
OUTLIVED_PROCESS = "the job outlived its timeout, and did not come back before its process ended"
_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


@dataclass(frozen=True, slots=True)
class JobError:
    """One entry of a job's `errors`; the database adds `at` and `attempt`."""

    kind: str
    message: str
    trace: str | None = None
    item: Any = None

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON, in text that PostgreSQL can store."""
        entry: dict[str, Any] = {"kind": self.kind, "message": storable(self.message)[:MAX_MESSAGE]}
        if self.trace is not None:
            entry["trace"] = storable(self.trace)[-MAX_TRACE:]
        if self.item is not None:
            entry["item"] = self.item
        return entry

    def as_json_array(self) -> str:
        """The text that is appended to a row's `errors`."""
        return json.dumps([self.as_dict()], ensure_ascii=False)


class Outcome(NamedTuple):  # a tuple, since one is made for each job and a frozen dataclass costs four times as much
    """What is to be recorded for (job_id, attempt). `result` and `errors` are JSON texts."""

    job_id: int
    attempt: int
    state: State
    result: str | None = None
    errors: str | None = None
    failures: int = 0
    delay_s: float | None = None
    result_url: str | None = None  # of what the attempt stored

    @property
    def error(self) -> JobError:
        """The first of its errors."""
        first = json.loads(self.errors or "[{}]")[0]
        return JobError(first.get("kind", ""), first.get("message", ""), first.get("trace"), first.get("item"))

    @classmethod
    def succeeded(cls, job: Job, result: str | None) -> Outcome:
        """Done; `result` is JSON text."""
        return cls(job.id, job.attempt, State.SUCCEEDED, result)

    @classmethod
    def partial(cls, job: Job, result: str | None, errors: str | None) -> Outcome:
        """Done, but for some items; `errors` is a JSON array."""
        return cls(job.id, job.attempt, State.PARTIAL, result, errors)

    @classmethod
    def failed(cls, job: Job, error: JobError) -> Outcome:
        """Failed for good."""
        return cls(job.id, job.attempt, State.FAILED, None, error.as_json_array(), 1)

    @classmethod
    def canceled(cls, job: Job) -> Outcome:
        """Ended because somebody wanted it to."""
        return cls(job.id, job.attempt, State.CANCELED)

    @classmethod
    def retry(cls, job: Job, after: float, error: JobError) -> Outcome:
        """Failed, and tried again after so many seconds."""
        return cls(job.id, job.attempt, State.SCHEDULED, None, error.as_json_array(), 1, _pause(after))

    @classmethod
    def snooze(cls, job: Job, after: float) -> Outcome:
        """Runs again after so many seconds; no failure."""
        return cls(job.id, job.attempt, State.SCHEDULED, delay_s=_pause(after))

    @classmethod
    def release(cls, job: Job) -> Outcome:
        """Given back to pending; no failure."""
        return cls(job.id, job.attempt, State.PENDING, delay_s=0.0)


class TooDeep(ValueError):
    """JSON that the next reader might not be able to read."""

    def __str__(self) -> str:
        return f"it is nested too deeply; the limit is {MAX_DEPTH} levels"


class Crash(Exception):
    """The process that ran the job died under it."""


class NeverBegan(Crash):
    """Nothing could be found or started to run the job in."""


class Returned(NamedTuple):
    """The executor returned."""

    value: Any


class Raised(NamedTuple):
    """The executor raised; BaseException, for an executor may call sys.exit."""

    error: BaseException


def settle(
    job: Job,
    ending: Returned | Raised,
    reason: CancelReason | None,
    *,
    policy: RetryPolicy,
    max_attempts: int | None = None,
    chance: float = 0.5,
    stack: str | None = None,
) -> Outcome:
    """What becomes of the job. `reason` is why it was asked to stop, if it was; `chance`, 0 to 1, is the jitter's;
    `stack` is
    where its thread was when its time was over."""
    if reason is None and isinstance(ending, Returned) and not isinstance(ending.value, Partial):
        return _succeeded(job, ending.value)  # by far the most frequent end, and match is slow
    never_began = isinstance(ending, Raised) and isinstance(ending.error, NeverBegan)
    if reason is CancelReason.TIMEOUT and not never_began:
        error = JobError("timeout", "the job outlived its timeout", stack or _trace(ending))
        return timed_out(job, error, policy=policy, max_attempts=max_attempts, chance=chance)
    match ending:
        case Returned(value=Partial(result=result, errors=errors)):
            return _partial(job, result, errors)
        case Returned(value=value):
            return _succeeded(job, value)
        case Raised(error=Cancel()):
            return Outcome.canceled(job)
        case Raised() if reason is CancelReason.REQUESTED:
            return Outcome.canceled(job)
        case Raised(error=Snooze() as snooze):
            return Outcome.snooze(job, snooze.after_s)
        case Raised(error=Retry() as retry):
            error = JobError("retry", _text(retry))
            return _failure(job, error, policy, max_attempts, chance, after=retry.after_s)
        case Raised(error=Fail() as fail):
            return Outcome.failed(job, JobError("fail", _text(fail) or "failed", _cause(fail)))
        case Raised() if reason in (CancelReason.SHUTDOWN, CancelReason.LOST):  # not the job's fault, unless it says so
            return Outcome.release(job)
        case Raised(error=ResultTooLarge() as exc):
            return Outcome.failed(job, JobError("result", _text(exc)))
        case Raised(error=exc):
            return _failure(job, describe(exc), policy, max_attempts, chance)


def timed_out(job: Job, error: JobError, *, policy: RetryPolicy, max_attempts: int | None, chance: float) -> Outcome:
    """What becomes of a job that outlived its timeout: tried again only where its type says so."""
    return _failure(job, error, policy, max_attempts, chance) if policy.retry_timeouts else Outcome.failed(job, error)


def store_failed(
    job: Job, exc: BaseException, *, policy: RetryPolicy, max_attempts: int | None, chance: float
) -> Outcome:
    """What becomes of a job whose result could not be stored: without a store to try again it fails for good."""
    if isinstance(exc, ResultTooLarge):
        return Outcome.failed(job, JobError("result", _text(exc)))
    error = JobError("result", f"the result could not be stored: {describe(exc).message}", describe(exc).trace)
    return _failure(job, error, policy, max_attempts, chance)


def crashed(job: Job, *, policy: RetryPolicy, max_attempts: int | None, chance: float, message: str) -> Outcome:
    """What becomes of a job whose process died under it: a failure, so that no job kills processes for ever."""
    return _failure(job, JobError("crash", message), policy, max_attempts, chance)


def describe(exc: BaseException) -> JobError:
    """An exception as an entry of `errors`."""
    text = _text(exc)
    if isinstance(exc, Crash):
        return JobError("crash", text)
    message = f"{type(exc).__name__}: {text}" if text else type(exc).__name__
    return JobError("exception", message, "".join(traceback.format_exception(exc, limit=-30)))


def encode(value: Any) -> str:
    """`value` as JSON text that PostgreSQL takes; raises TypeError or ValueError where there is none."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except RecursionError as exc:
        raise TooDeep from exc
    if text.count("[") + text.count("{") > MAX_DEPTH and deeper(value, MAX_DEPTH):
        raise TooDeep
    if "\\u0000" in text and _ESCAPED_NUL.search(text):
        raise ValueError("it has a NUL character (U+0000), which PostgreSQL cannot store")
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise ValueError("it has half of a surrogate pair, which is no Unicode text") from exc
    return text


def deeper(value: Any, levels: int) -> bool:
    """Whether a JSON value is nested more than so many levels deep."""
    level: list[Any] = [value] if isinstance(value, dict | list | tuple) else []
    for _ in range(levels):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list | tuple)
        ]
        if not level:
            return False
    return True


def storable(text: str) -> str:
    """`text` with the few characters that PostgreSQL cannot store written as escapes."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()


def _pause(after: float) -> float:
    return min(MAX_DELAY_S, max(0.0, after))  # in this order, which makes 0 of NaN


def _failure(
    job: Job, error: JobError, policy: RetryPolicy, max_attempts: int | None, chance: float, after: float | None = None
) -> Outcome:
    failures = job.failures + 1
    if failures >= (max_attempts or policy.max_attempts):
        return Outcome.failed(job, error)
    return Outcome.retry(job, policy.backoff.delay_s(failures, chance) if after is None else after, error)


def _text(exc: BaseException) -> str:
    try:
        return str(exc)
    except BaseException:  # noqa: BLE001 - its own code: what it raises here must not cost the worker its thread
        return f"{type(exc).__name__}, whose text cannot be read"


def _succeeded(job: Job, value: Any) -> Outcome:
    try:
        return Outcome.succeeded(job, None if value is None else encode(value))
    except Exception as exc:  # noqa: BLE001 - the value's own methods may run, and raise what they like
        return Outcome.failed(job, JobError("result", f"the result is not JSON: {_text(exc)}"))


def _partial(job: Job, result: Any, errors: list[dict[str, Any]]) -> Outcome:
    try:
        entries = [
            {"kind": "item", **entry, "message": storable(str(entry.get("message", "")))[:MAX_MESSAGE]}
            for entry in errors
        ]
        # None where there are none: the row keeps the errors of earlier tries.
        return Outcome.partial(job, None if result is None else encode(result), encode(entries) if entries else None)
    except Exception as exc:  # noqa: BLE001 - the values' own methods may run, and raise what they like
        return Outcome.failed(job, JobError("result", f"the partial result is not JSON: {_text(exc)}"))


def _trace(ending: Returned | Raised) -> str | None:
    return (
        describe(ending.error).trace
        if isinstance(ending, Raised) and not isinstance(ending.error, Interrupted)
        else None
    )


def _cause(exc: BaseException) -> str | None:
    return describe(exc).trace if exc.__cause__ is not None else None
