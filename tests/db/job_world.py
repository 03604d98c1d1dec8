"""One database and its fleet, for random operations: what these are made of, and how answers are compared."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from hypothesis import strategies as st

from dispatcher.errors import DispatcherError
from dispatcher.executor import Executor
from dispatcher.retry import Backoff, RetryPolicy
from tests.db.front_doors import DATABASE_DOORS, DOORS, CommandRefused
from tests.db.job_fleet import Fleet
from tests.db.job_model import AGAIN, Refused
from tests.db.running import nothing, value

HOUR_S = 3600.0
POLICY = RetryPolicy(max_attempts=3, backoff=Backoff(initial_s=HOUR_S, jitter=0.0))
PLAIN = Executor("plain", nothing, "tests.plain", retry=POLICY)
LIMITED = Executor("limited", nothing, "tests.limited", retry=POLICY, limit=2)
SHARED = Executor("shared", nothing, "tests.shared", retry=POLICY, tenant_limit=1)
TYPES = {spec.type: spec for spec in (PLAIN, LIMITED, SHARED)}
EMPTIED = (
    "truncate dispatcher.job, dispatcher.batch, dispatcher.dependency, dispatcher.follow_up, dispatcher.claim,"
    " dispatcher.control, dispatcher.schedule, dispatcher.throttle, dispatcher.tally; delete from dispatcher.replica"
)

doors = st.sampled_from(DOORS)
database_doors = st.sampled_from(DATABASE_DOORS)
types = st.sampled_from(sorted(TYPES))
names = st.sampled_from(["s", "t.u"])
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=3)
payloads = st.dictionaries(texts, st.none() | st.booleans() | st.integers(-9, 9) | texts | st.just(0.5), max_size=2)
options = st.fixed_dictionaries(
    {},
    optional={
        "priority": st.integers(-1, 1),
        "tenant": st.sampled_from(["x", "ÿ'"]),
        "max_attempts": st.integers(1, 3),
        "when": st.sampled_from(["past", "delay", "future"]),
    },
)
states = st.lists(st.sampled_from(AGAIN), min_size=1, unique=True)


class World:
    """One database for all examples, its doors and its fleet."""

    def __init__(self, dsn: str, conn: psycopg.Connection[Any], doors: dict[str, Any]) -> None:
        self.dsn, self.conn, self.doors = dsn, conn, doors
        self.fleet = Fleet(dsn, conn, [*TYPES.values()])

    def empty(self) -> None:
        """As good as new."""
        for statement in EMPTIED.split("; "):
            self.conn.execute(statement.encode())
        self.fleet.begin()

    def rows(self, query: str) -> list[dict[str, Any]]:
        """What a query answers."""
        with self.conn.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            return cursor.execute(query.encode()).fetchall()

    def callback_of(self, batch: int) -> int:
        """Its latest callback."""
        return int(value(self.conn, "select callback_id from dispatcher.batches where id = %s", batch))


def told(act: Callable[[], Any]) -> Any:
    """What it answered, or which error it was."""
    try:
        return act()
    except Refused as exc:
        return f"refused: {exc}"
    except DispatcherError as exc:
        return f"refused: {type(exc).__name__}"


def agree(got: Any, want: Any) -> bool:
    """Whether a door answered as the model; True if it was no refusal."""
    if got == f"refused: {CommandRefused.__name__}" and str(want).startswith("refused"):
        return False
    assert got == want
    return not str(got).startswith("refused")


def sent(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options as a door takes them, and as the model does."""
    ours, theirs = dict(given), dict(given)
    match ours.pop("when", None):
        case "past":
            ours["run_at"] = datetime.now(UTC) - timedelta(hours=1)
        case "delay":
            ours["delay"], theirs["later"] = HOUR_S, True
        case "future":
            ours["run_at"], theirs["later"] = datetime.now(UTC) + timedelta(hours=1), True
    return ours, theirs
