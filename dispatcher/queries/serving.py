"""Statements of the HTTP API, as operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dispatcher.job import State
from dispatcher.outcome import encode
from dispatcher.queries.operation import Operation, Query

COUNTED = 20_000


class Document(NamedTuple):
    """A job as JSON text; `tenant` is empty for none."""

    id: int
    tenant: str
    state: str
    text: str


class Progress(NamedTuple):
    """What subscribers of a job are told."""

    id: int
    state: str
    attempt: int
    progress: float
    progress_message: str | None
    cancel_requested: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is kept for a request that is sent again; `body` is JSON text, empty for none."""

    status: int
    headers: dict[str, str]
    body: str


class EnqueueRequest(NamedTuple):
    """A job that is checked and ready to be sent: JSON texts; and with a key, whose it is and what it came with."""

    type: str
    payload: str
    options: str
    tenant: str = ""
    key: str | None = None
    digest: bytes | None = None


class EnqueueAnswer(NamedTuple):
    """Status 0: another transaction has the key; 409: it came with another request."""

    replayed: bool
    answer: Answer


def answer_enqueues(requests: Sequence[EnqueueRequest]) -> Operation[list[EnqueueAnswer]]:
    """Enqueues the jobs of several requests, all or none, and answers each."""
    types, payloads, options, tenants, keys, digests = zip(*requests, strict=True)
    params = {
        "types": list(types),
        "payloads": "\n".join(payloads),
        "options": "\n".join(options),
        "tenants": list(tenants),
        "keys": list(keys),
        "digests": list(digests),
    }
    rows = yield Query("answer_enqueues", params, often=True)
    return [EnqueueAnswer(replayed, Answer(status, headers, body)) for status, replayed, headers, body in rows]


def get_documents(
    ids: Sequence[int],
    states: Sequence[State] | None = None,
    *,
    own: bool = False,
    tenants: Sequence[str] | None = None,
) -> Operation[list[Document]]:
    """Those of the jobs that exist, and are in one of the states, the newest first; `own`: for their own tenant;
    `tenants`: of these."""
    params: dict[str, Any] = {
        "ids": list(ids),
        "states": None if states is None else [state.value for state in states],
        "own": own,
        "tenants": None if tenants is None else list(tenants),
    }
    rows = yield Query("get_documents", params, reads=True, often=True)
    return [Document._make(row) for row in rows]


def get_progress(ids: Sequence[int]) -> Operation[list[Progress]]:
    """Those of the jobs that exist."""
    rows = yield Query("get_progress", {"ids": list(ids)}, reads=True, often=True)
    return [Progress._make(row) for row in rows]


def get_owners(ids: Sequence[int]) -> Operation[dict[int, str]]:
    """The tenant, empty for none, of those of the jobs that exist."""
    rows = yield Query("get_owners", {"ids": list(ids)}, reads=True, often=True)
    return dict(rows)


def ask_for_events() -> Operation[None]:
    """The replicas notify of what they claim and settle, for the next half a minute."""
    yield Query("ask_for_events", often=True)


def count_by_state(tenant: str | None) -> Operation[dict[str, dict[str, int]]]:
    """Jobs that have not succeeded, by type and state, of a tenant or of all; of each kind up to 20,000."""
    rows = yield Query("count_by_state", {"tenant": tenant, "most": COUNTED}, reads=True)
    counts: dict[str, dict[str, int]] = {}
    for type, state, jobs in rows:
        counts.setdefault(type, {})[state] = jobs
    return counts


def count_pending(tenant: str, most: int) -> Operation[int]:
    """Pending jobs of a tenant, counted up to `most`."""
    rows = yield Query("count_pending", {"tenant": tenant, "most": most}, reads=True, often=True)
    return int(rows[0][0])


def take_key(tenant: str, key: str, digest: bytes) -> Operation[tuple[bool, bool, Answer | None]]:
    """(whether another transaction has it, whether it goes with this request, the answer that was given first)."""
    rows = yield Query("take_key", {"tenant": tenant, "key": key, "digest": digest}, often=True)
    busy, same, status, headers, body = rows[0]
    return bool(busy), bool(same), None if status is None else Answer(status, headers, body)


def keep_answer(tenant: str, key: str, answer: Answer) -> Operation[None]:
    """In the same transaction."""
    params = {"status": answer.status, "headers": encode(answer.headers), "body": answer.body}
    yield Query("keep_answer", {"tenant": tenant, "key": key, **params}, often=True)


def note_audit(
    *,
    token_id: int,
    token_name: str,
    tenant: str | None,
    action: str,
    target: str,
    details: dict[str, Any],
    address: str | None,
) -> Operation[None]:
    """Who did what; in the transaction that did it."""
    params = {"token_id": token_id, "token_name": token_name, "tenant": tenant, "action": action, "target": target}
    yield Query("note_audit", {**params, "details": encode(details), "address": address})
