"""Since when a replica may count on its jobs after its lease session was lost."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

import psycopg
import pytest

from dispatcher.context import Context
from dispatcher.custody import Custody
from dispatcher.executor import Executor
from dispatcher.inflight import Execution, InFlight
from dispatcher.job import CancelReason, Job
from dispatcher.outcome import Outcome
from dispatcher.queries import claims
from dispatcher.queries.claims import Claimed

NOW = datetime(2030, 1, 1, tzinfo=UTC)
CONN = cast(Any, object())
BEFORE, LATER = 100.0, 200.0  # of the last answer on the session that was lost, and on the new one


class Database:
    """What a new session says."""

    def __init__(self) -> None:
        self.disowned: set[tuple[int, int]] = set()
        self.fails = False

    def list_disowned(self, _conn: object, _replica: int, attempts: list[tuple[int, int]]) -> set[tuple[int, int]]:
        if self.fails:
            raise psycopg.OperationalError("gone again")
        return self.disowned & set(attempts)


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Database:
    database = Database()
    monkeypatch.setattr(claims, "list_disowned", database.list_disowned)
    monkeypatch.setattr(claims, "own_running", lambda _conn, _replica: [])
    return database


@pytest.fixture
def execution() -> Execution:
    claimed = Claimed(1, "import", "", 0, 1, 0, None, None, NOW, "{}", None, 0.0, 1)
    execution = Execution(claimed, Executor("import", lambda _job, _ctx: None, "tests"), 0.0)
    job = Job(1, "import", None, {}, 0, 1, 0, NOW)
    execution.ctx = Context(job, timeout_s=None, runtime=cast(Any, None))
    return execution


@pytest.fixture
def custody(execution: Execution) -> Custody:
    inflight = InFlight()
    inflight.add([execution])
    return Custody(inflight=inflight, replica=1, lease_number=1, set_unknown=lambda _running: None)


def test_a_new_session_counts_once_its_database_was_seen_to_know_what_runs_here(
    custody: Custody, database: Database
) -> None:
    assert custody.trust(BEFORE) == BEFORE
    custody.lose_session(BEFORE)
    assert custody.trust(LATER) == BEFORE
    database.fails = True
    with pytest.raises(psycopg.OperationalError):
        custody.compare(CONN)
    assert custody.trust(LATER) == BEFORE
    custody.lose_session(LATER)  # that one as well, before it had shown anything
    assert custody.trust(LATER) == BEFORE
    database.fails = False
    custody.compare(CONN)
    assert custody.trust(LATER) == LATER


def test_it_does_not_count_while_a_job_runs_that_its_database_does_not_know(
    custody: Custody, database: Database, execution: Execution
) -> None:
    """Who leads on a promoted server waits orphan_after, no longer, for that job to stop."""
    custody.lose_session(BEFORE)
    database.disowned = {execution.key}
    for _ in range(2):  # the first compares, the next ones only wait
        custody.compare(CONN)
        assert custody.trust(LATER) == BEFORE
    assert execution.ctx is not None
    assert execution.ctx.canceled is CancelReason.LOST
    execution.outcome = Outcome.succeeded(execution.ctx.job, None)  # its thread is back
    custody.compare(CONN)
    assert custody.trust(LATER) == LATER
