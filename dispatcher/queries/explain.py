"""Why a job does not run, as an operation of the clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dispatcher.job import State
from dispatcher.queries.jobs import checked_id
from dispatcher.queries.operation import Operation, Query


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason: its kind for programs, a line for people, and what it is about as JSON values."""

    kind: str
    text: str
    details: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job does not run, or since when it does; the most decisive reason first."""

    id: int
    state: State
    summary: str
    reasons: list[Reason]
    ahead: int | None
    """Pending jobs of its type and tenant that go before it, counted up to 10,000; None if it is not pending."""


def explain_job(id: int) -> Operation[Explanation]:
    """What the database says; raises JobNotFound."""
    rows = yield Query("explain_job", {"id": checked_id(id)}, reads=True)
    found = rows[0][0]
    reasons = [Reason(one["kind"], one["text"], one["details"]) for one in found["reasons"]]
    return Explanation(found["id"], State(found["state"]), found["summary"], reasons, found["ahead"])
