"""Statements of the clients about jobs, as operations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from operator import index
from typing import Any

from psycopg.rows import TupleRow

from dispatcher.batch import BatchInfo
from dispatcher.errors import InvalidOption, JobNotFound
from dispatcher.job import JobInfo, State
from dispatcher.queries.operation import Operation, Query

MAX_ID = 2**63 - 1


def enqueue_job(type: str, payload: str, options: str) -> Operation[tuple[int, bool]]:
    """The job's id, and whether it is new; `payload` and `options` are JSON texts."""
    rows = yield Query("enqueue_job", {"type": type, "payload": payload, "options": options}, often=True)
    id, created = rows[0]
    return int(id), bool(created)


def enqueue_many_jobs(type: str, payloads: str, options: str) -> Operation[list[int]]:
    """The jobs' ids, in order; `payloads` has one JSON text a line."""
    rows = yield Query("enqueue_many_jobs", {"type": type, "payloads": payloads, "options": options})
    return [id for (id,) in rows]


def enqueue_unique_jobs(type: str, payloads: str, options: str) -> Operation[list[tuple[int, bool]]]:
    """(id, whether it is new) for each payload, in order."""
    rows = yield Query("enqueue_unique_jobs", {"type": type, "payloads": payloads, "options": options})
    return [(id, created) for id, created in rows]


def enqueue_batch(type: str, payloads: str, options: str) -> Operation[int]:
    """The id of a new batch with these first children."""
    rows = yield Query("enqueue_batch", {"type": type, "payloads": payloads, "options": options})
    return int(rows[0][0])


def get_batch(id: int) -> Operation[BatchInfo]:
    """One batch; raises JobNotFound."""
    rows = yield Query("get_batch", {"id": checked_id(id)}, reads=True)
    if not rows:
        raise JobNotFound(f"there is no batch {id}")
    values: list[Any] = list(rows[0])
    values[2] = State(values[2])
    return BatchInfo(*values)


def list_predecessors(id: int) -> Operation[list[JobInfo]]:
    """The jobs after which a job was enqueued."""
    rows = yield Query("list_predecessors", {"id": checked_id(id)}, reads=True)
    return [job_info(row) for row in rows]


def get_job(id: int) -> Operation[JobInfo]:
    """One job; raises JobNotFound."""
    rows = yield Query("get_job", {"id": checked_id(id)}, reads=True)
    if not rows:
        raise not_found(id)
    return job_info(rows[0])


def get_states(ids: Sequence[int]) -> Operation[dict[int, State]]:
    """The states of those of the jobs that exist."""
    rows = yield Query("get_states", {"ids": list(ids)}, reads=True)
    return {id: State(state) for id, state in rows}


def cancel_job(id: int) -> Operation[str]:
    """The state that it leaves the job in; raises JobNotFound."""
    rows = yield Query("cancel_job", {"id": checked_id(id)})
    return str(rows[0][0])


def retry_job(id: int) -> Operation[str]:
    """The state that it leaves the job in; raises JobNotFound, WrongState or UniqueConflict."""
    rows = yield Query("retry_job", {"id": checked_id(id)})
    return str(rows[0][0])


def answer_job(id: int, token: str, answer: str) -> Operation[str]:
    """The state that an answer, as JSON, leaves the job in; raises JobNotFound for a token of another."""
    rows = yield Query("answer_job", {"id": checked_id(id), "token": token, "answer": answer})
    return str(rows[0][0])


def job_info(row: TupleRow) -> JobInfo:
    """A row of get_job or list_jobs as what a client sees."""
    values: list[Any] = list(row)
    values[3] = State(values[3])
    values[14] = timedelta(seconds=values[14] or 0)
    return JobInfo(*values)


def checked_id(id: int) -> int:
    """`id`, if any job could have it; raises JobNotFound, and InvalidOption where it is no whole number."""
    number = whole("id", id)
    if not 0 <= number <= MAX_ID:
        raise not_found(id)
    return number


def checked_ids(ids: Iterable[int]) -> list[int]:
    """The same for several."""
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise InvalidOption(f"id must be a whole number, or several of them; it is {ids!r:.100}")
    return [checked_id(id) for id in ids]


def whole(name: str, value: Any) -> int:
    """A whole number of Python or of a library such as numpy; raises InvalidOption."""
    try:
        if not isinstance(value, bool):
            return index(value)
    except TypeError:
        pass
    raise InvalidOption(f"{name} must be a whole number; it is {value!r:.100}")


def not_found(id: object) -> JobNotFound:
    """The error for a job that does not exist."""
    return JobNotFound(f"there is no job {id}")
