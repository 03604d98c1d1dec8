"""Forged histories of a storm: in each every promise is kept, until a test spoils it."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.events import Event
from tests.storm.checker import check
from tests.storm.history import BatchRow, Change, Enqueued, History, Limits, Row

NOON = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)
WAYS = {"succeeded": "return", "failed": "fail", "canceled": "cancel", "partial": "partial"}


class Forge:
    """Writes a history in which every promise is kept, until a test spoils it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.rows: dict[int, Row] = {}
        self.changes: list[Change] = []
        self.facts: dict[str, Any] = {"limits": Limits(overall=10), "clock_offset_s": NOON.timestamp()}
        self.facts["timeouts_s"] = {"late": 0.4}
        self._number = itertools.count(1)

    def event(self, t: float, job: int, what: str, why: str = "", *, attempt: int = 1, pid: int = 100) -> None:
        self.events.append(Event(t, pid, job, attempt, what, why))

    def change(
        self,
        job: int,
        before: str | None,
        after: str,
        attempt: int = 0,
        at_s: float = 0.0,
        *,
        due_s: float | None = None,
        session: str = "a",
        term: int = 1,
    ) -> None:
        due = None if due_s is None else NOON + timedelta(seconds=due_s)
        at = NOON + timedelta(seconds=at_s)
        self.changes.append(Change(next(self._number), job, before, after, attempt, at, due, session, term))

    def row(self, id: int, state: str, **fields: Any) -> None:
        values: dict[str, Any] = {"type": "quick", "tenant": None, "attempt": 1, "unique_key": None, "parent_id": None}
        values |= {
            "failures": 0,
            "max_attempts": 1 if state == "failed" else 5,
            "due": None,
            "payload": {},
            "result": {"attempt": fields.get("attempt", 1)},
            "errors": [],
        }
        self.rows[id] = Row(id=id, state=state, **values | fields)

    def job(
        self, id: int, start: float, last: float, state: str = "succeeded", *, how: str = "", **fields: Any
    ) -> None:
        """A job that was enqueued just before its one attempt."""
        self.change(id, None, "pending", at_s=start)
        self.change(id, "pending", "running", 1, at_s=start)
        self.change(id, "running", state, 1, at_s=last)
        self.event(start, id, "start")
        self.event(last, id, "end", how or WAYS[state])
        self.row(id, state, **fields)

    def batch(self, id: int, *children: str, **counts: int) -> None:
        """A batch and its jobs, in these states, and its callback."""
        for number, state in enumerate(children, id + 1):
            self.job(number, number, number + 0.5, state, parent_id=id, payload={"batch": "b"})
        one = children[0] if len(set(children)) == 1 else ""
        state = one or ("partial" if "succeeded" in children else "failed")
        self.change(id, None, "running", 0, at_s=id)
        self.change(id, "running", state, 0, at_s=id + 10)
        self.row(id, state, type="batch", attempt=0)
        self.facts["batches"] = [BatchRow(id, state, len(children), counts)]
        self.job(id + 90, id + 11, id + 12, type="callback", payload={"callback_of": "b"})

    def breaches(self) -> list[str]:
        enqueued = [Enqueued(row.id, 0.0, row.type) for row in self.rows.values() if row.parent_id is None]
        facts = {"enqueued": enqueued} | self.facts
        return check(History(events=self.events, rows=self.rows, changes=self.changes, **facts))


def assert_only(forge: Forge, rule: str, *words: str) -> None:
    breaches = forge.breaches()
    assert {breach.partition(":")[0] for breach in breaches} == {rule}, breaches
    for word in words:
        assert word in breaches[0]
