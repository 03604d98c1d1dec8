"""Tables that grow by a column while replicas run, as a later migration makes them: no statement of theirs breaks."""

from __future__ import annotations

import json
import signal

import psycopg
import pytest

from tests.system.replicas import Fleet, until

pytestmark = pytest.mark.system


def some_of_each(fleet: Fleet) -> list[int]:
    """Jobs of most kinds, once they have ended."""
    before = fleet.enqueue("quick", 5)
    parent = fleet.value("select dispatcher.enqueue_batch('quick', array_fill('{}'::jsonb, array[3]), '{}')")
    after = fleet.value("select dispatcher.enqueue('quick', '{}', %s::jsonb)", json.dumps({"after": [parent]}))
    later = fleet.value("""select dispatcher.enqueue('quick', '{}', '{"delay": 0.2}')""")
    tenant = fleet.value("""select dispatcher.enqueue('quick', '{}', '{"tenant": "shop", "unique_key": "k"}')""")
    fleet.query("select dispatcher.trigger_schedule('yearly')")
    ids = [*before, parent, after, later, tenant]
    fleet.until_all(ids)
    return ids


def add_column(conn: psycopg.Connection, table: str) -> None:
    """As a migration does that gives way: what runs is let through, and it is tried again."""

    def alter() -> bool:
        try:
            conn.execute(f'alter table dispatcher."{table}" add column of_a_later_version integer default 7'.encode())
        except psycopg.errors.LockNotAvailable:
            return False
        return True

    until(alter, f"{table} has grown")


def test_columns_that_a_later_version_adds_break_no_statement_of_running_replicas(fleet: Fleet) -> None:
    """Statements are prepared, and a list of all columns would change under them: "cached plan must not change"."""
    leader, standby = fleet.start_pair()
    fleet.query("select dispatcher.add_schedule('yearly', '0 0 1 1 *', 'quick')")
    some_of_each(fleet)
    fleet.conn.execute("set lock_timeout = '40ms'")
    for (table,) in fleet.query("select tablename from pg_tables where schemaname = 'dispatcher' order by 1"):
        add_column(fleet.conn, table)
    fleet.conn.execute("reset lock_timeout")
    some_of_each(fleet)
    [stopped, held] = fleet.enqueue("hold", 2, until=str(fleet.gate()))
    fleet.until_started([stopped, held], pid=leader.pid)
    fleet.query("select dispatcher.cancel(%s)", stopped)
    fleet.until_all([stopped], "canceled")
    assert fleet.value("select dispatcher.retry(%s)", stopped) == "pending"
    fleet.until_started([stopped])
    assert fleet.term() == 1, "the lease's session stood all the while"
    leader.send(signal.SIGKILL)
    fleet.until_started([held], pid=standby.pid)
    fleet.gate().touch()
    fleet.until_all([stopped, held])
    some_of_each(fleet)
    until(lambda: fleet.value("select count(*) from dispatcher.replica") == 1, "the dead replica's row is removed")
    for replica in (leader, standby):
        errors = [entry["event"] for entry in replica.log() if entry["level"] in ("error", "raw")]
        assert not errors
        assert not [entry["event"] for entry in replica.log() if "cached plan" in entry["event"]]
        assert not replica.said("session is lost")
