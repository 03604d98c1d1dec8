"""What a leader and a stand-by cost when there is nothing to do."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psycopg

from tests.bench.scenarios.measures import Measures, Size
from tests.bench.scenarios.process import cpu_s
from tests.bench.stage import Stage, stage

TRANSACTIONS = "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()"
STATEMENTS = (
    "select coalesce(sum(calls), 0) from pg_stat_statements"
    " where dbid = (select oid from pg_database where datname = current_database())"
    " and query not like '%pg_stat_%'"  # ours
)
# Loaded, but at rest for all other scenarios: tests/bench/__main__.py.
COUNT_STATEMENTS = """
create extension if not exists pg_stat_statements;
do $$ begin
    execute format('alter database %I set compute_query_id = on', current_database());
    execute format('alter database %I set pg_stat_statements.track = top', current_database());
end $$;
"""


@dataclass(frozen=True, slots=True)
class Watched:
    """Percent of one CPU for each process; transactions and statements a second in the database."""

    cpu: list[float]
    transactions: float
    statements: float | None


def idle(dsn: str, size: Size) -> Measures:
    """The leader alone, then with a stand-by: what is more then is the stand-by's."""
    with stage(dsn) as own:
        counted = _count_statements(own)
        leader = own.start_replica()
        own.lead()
        alone = _watch(own, [leader.pid], size, counted)
        standby = own.start_replica()
        own.lead()
        both = _watch(own, [leader.pid, standby.pid], size, counted)
    measures: Measures = {
        "leader_cpu": (alone.cpu[0], "%"),
        "leader_transactions": (alone.transactions, "1/s"),
        "standby_cpu": (both.cpu[1], "%"),
        "standby_transactions": (max(0.0, both.transactions - alone.transactions), "1/s"),
        "both_cpu": (sum(both.cpu), "%"),
    }
    if alone.statements is not None and both.statements is not None:
        measures |= {
            "leader_statements": (alone.statements, "1/s"),
            "standby_statements": (max(0.0, both.statements - alone.statements), "1/s"),
        }
    return measures


def _count_statements(own: Stage) -> bool:
    """True if the server has pg_stat_statements loaded, and we may use it."""
    try:
        own.do(COUNT_STATEMENTS)
        own.ask(STATEMENTS)
    except (psycopg.errors.ObjectNotInPrerequisiteState, psycopg.errors.FeatureNotSupported):
        return False  # not loaded; not installed
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedFile):
        return False
    return True


def _watch(own: Stage, pids: list[int], size: Size, counted: bool) -> Watched:
    time.sleep(size.settle_s)
    before, began = _counters(own, pids, counted), time.monotonic()
    time.sleep(size.idle_s)  # doing nothing is what is measured
    after, took = _counters(own, pids, counted), time.monotonic() - began
    rates = [(later - sooner) / took for sooner, later in zip(before, after, strict=True)]
    transactions, statements, *cpu = rates
    return Watched([100 * used for used in cpu], transactions, statements if counted else None)


def _counters(own: Stage, pids: list[int], counted: bool) -> list[float]:
    statements = float(str(own.ask(STATEMENTS))) if counted else 0.0
    return [float(str(own.ask(TRANSACTIONS))), statements, *map(cpu_s, pids)]
