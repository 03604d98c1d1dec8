"""A role's defaults that would break every promise, and replicas that keep them: each of their sessions is pinned."""

from __future__ import annotations

import signal
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from dispatcher.embedded import EmbeddedPostgres
from tests.db.test_sessions import role_defaults
from tests.system.replicas import Fleet, until

pytestmark = pytest.mark.system

HOSTILE = {
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "synchronous_commit": "off",
    "search_path": "public",
    "timezone": "Asia/Kolkata",
    "statement_timeout": "7777ms",
    "idle_session_timeout": "7777ms",
    "idle_in_transaction_session_timeout": "7777ms",
    "jit": "on",
    "plan_cache_mode": "force_custom_plan",
    "enable_nestloop": "on",
    "enable_seqscan": "on",
}
WANTED = {
    "transaction_isolation": "read committed",
    "synchronous_commit": "on",
    "search_path": "pg_catalog, pg_temp",
    "timezone": "UTC",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
}
TIMEOUTS = ("statement_timeout", "idle_session_timeout", "idle_in_transaction_session_timeout")
# Whoever writes in any of these tables is noted, with what its session goes by.
WITNESS = f"""
create table public.seen (app text, name text, value text, primary key (app, name, value));
create function public.witness() returns trigger language plpgsql as $$
begin
    insert into public.seen
    select current_setting('application_name'), s.name, current_setting(s.name)
    from unnest(string_to_array('{" ".join((*WANTED, *TIMEOUTS))}', ' ')) as s (name)
    on conflict do nothing;
    return null;
end $$;
"""
TABLES = ("job", "claim", "lease", "replica", "type", "follow_up", "batch", "dependency", "schedule", "tally")


@pytest.fixture
def fleet(server: EmbeddedPostgres, dsn: str, superuser_dsn: str, tmp_path: Path) -> Iterator[Fleet]:
    """Replicas under the hostile role; the test itself is the superuser."""
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute(WITNESS.encode())
        for table in TABLES:
            owner.execute(
                f"create trigger witness after insert or update or delete on dispatcher.{table}"
                " for each statement execute function public.witness()".encode()
            )
    with role_defaults(server, dsn, HOSTILE), Fleet(dsn, tmp_path, admin_dsn=superuser_dsn) as fleet:
        yield fleet


def do_everything(fleet: Fleet) -> None:
    """What makes each service write; the first leader dies on the way."""
    leader, standby = fleet.start_pair()
    later = fleet.value("""select dispatcher.enqueue('quick', '{}', '{"delay": "300ms"}')""")
    parent = fleet.value("select dispatcher.enqueue_batch('quick', array_fill('{}'::jsonb, array[3]), '{}')")
    after = fleet.value("select dispatcher.enqueue('quick', '{}', jsonb_build_object('after', %s::bigint))", parent)
    fleet.query("select dispatcher.add_schedule('yearly', '0 0 1 1 *', 'quick')")
    fleet.until_all([*fleet.enqueue("quick", 20), later, parent, after])
    until(lambda: fleet.value("select next_at is not null from dispatcher.schedule"), "the schedule is worked out")
    [held] = fleet.enqueue("hold", 1, until=str(fleet.gate()))
    fleet.until_started([held], pid=leader.pid)
    fleet.query(
        "insert into dispatcher.job (type, state, payload, created_at, finished_at)"
        " values ('quick', 'succeeded', '{}', now() - interval '9 days', now() - interval '9 days') returning id"
    )
    leader.send(signal.SIGKILL)
    fleet.until_started([held], pid=standby.pid)
    fleet.gate().touch()
    fleet.until_all([held])
    until(lambda: fleet.value("select count(*) from dispatcher.replica") == 1, "the dead replica's row is removed")
    standby.send(signal.SIGTERM)
    assert standby.wait() == 0


def test_every_session_of_a_replica_that_writes_is_pinned(fleet: Fleet) -> None:
    """One that was not would lose commits in a crash, fail with serialization errors, or write nothing at all."""
    do_everything(fleet)
    seen: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for app, name, value in fleet.query("select app, name, value from public.seen where app like 'dispatcher %'"):
        seen[app][name].add(value)
    kinds = {app.removeprefix("dispatcher ").partition(" ")[0] for app in seen}
    assert kinds >= {"start", "lease", "completer", "stager", "linker", "scheduler", "rescuer", "teller", "leave"}
    for app, settings in seen.items():
        for name, value in WANTED.items():
            assert settings[name] == {value}, (app, name)
        for name in TIMEOUTS:
            assert "7777ms" not in settings[name], (app, name)
