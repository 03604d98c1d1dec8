"""The plans of hot statements do not depend on statistics, which for a queue are always out of date."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import psutil
import psycopg
import pytest
from dispatcher.sql import statement

from dispatcher.db import Connection, SessionLimits, pinned
from dispatcher.embedded import EmbeddedPostgres
from dispatcher.outcome import Outcome
from dispatcher.queries import claims, outcomes, upkeep
from tests import servers
from tests.db.running import OWNER, as_job, claim, publish, session
from tests.timing import quickest

Plans = dict[tuple[str, str], str]
Pages = dict[tuple[str, str], int]

STAGES = [
    "no statistics",
    "20 rows and their statistics",
    "20 finished rows and their statistics",
    "200,000 rows, statistics of none",
    "a million rows, statistics of none",
    "a million rows",
]

# By which indexes of the job table each statement finds its rows.
EXPECTED = {
    "claim_jobs": {"job_lane"},
    "claim_free_jobs": {"job_lane", "job_pkey"},
    "list_lanes": {"job_lane"},
    "share_lanes": {"job_lane"},
    "list_aged_lanes": {"job_lane"},
    "share_aged_lanes": {"job_lane"},
    "finish_jobs": {"job_pkey"},
    "finish_plain_jobs": {"job_pkey"},
    "finish_free_jobs": {"job_pkey"},
    "reschedule_jobs": {"job_pkey"},
    "release_jobs": {"job_pkey"},
    "list_still_running": {"job_pkey"},
    "list_disowned": {"job_pkey"},
    "postpone_jobs": {"job_pkey"},
    "list_recorded": {"job_pkey"},
    "list_canceled": {"job_pkey"},
    "write_progress": {"job_pkey"},
    "mark_timed_out": {"job_pkey"},
    "promote_jobs": {"job_due", "job_pkey"},
    "next_due": {"job_due"},
    "resolve_dependencies": {"job_pkey"},
    "list_ready": {"job_pkey"},
    "release_dependents": {"job_pkey"},
    "list_complete_batches": {"job_pkey"},
    "end_batches": {"job_pkey"},
    "list_orphans": {"job_pkey"},
    "count_running": {"job_pkey"},
    "own_running": {"job_pkey"},
    "ask_overdue_owners": {"job_pkey"},
    "prune_jobs": {"job_pkey"},
    "list_vanished": {"job_pkey"},
    "get_job": {"job_pkey"},
    "drop_claims": {"job_pkey"},
    "remove_replica": {"job_pkey"},
    "note_leader": set(),
    "set_leaving": set(),
}


# Read in order as far as needed, from one end.
WALKED = {"promote_jobs": {"job_due"}, "next_due": {"job_due"}}

# The same for the tables around it: by which of their indexes, each with a condition, and by no other.
AROUND = {
    "take_marks": {"follow_up_pkey"},
    "count_children": {"batch_pkey"},
    "find_batches": {"batch_pkey"},
    "list_complete_batches": {"batch_pkey", "batch_open"},
    "end_batches": {"batch_pkey", "batch_open"},
    "resolve_dependencies": {"dependency_after", "dependency_pkey", "dependency_open"},
    "list_ready": {"dependency_pkey"},
    "list_due_schedules": {"schedule_due"},
    "prune_jobs": {"batch_pkey", "batch_open", "dependency_after"},
}

# Those of the clients, whose sessions are as their owner left them.
LISTS = {
    "find_running_jobs": {"job_pkey"},
    "find_pending_jobs": {"job_lane", "job_pkey"},
    "find_scheduled_jobs": {"job_due"},
    "find_blocked_jobs": {"job_pkey"},
    "find_children": {"job_parent", "job_pkey"},
    "list_jobs": {"job_pkey"},
}
ASKED = {
    "type": "'quick'",
    "tenant": "'tenant 1'",
    "states": "'{failed}'",
    "kind": "'timeout'",
    "since": "'2020-01-01'",
    "until": "'2040-01-01'",
    "parent": "1",
    "before": "9223372036854775807",
    "limit": "50",
    "examine": "20000",
    "ids": "'{1,2,3}'",
}
# Those of the HTTP API, in sessions pinned as its are, whether they are planned for their arguments or for any.
SERVING = {
    "get_documents": {"job_pkey"},
    "get_progress": {"job_pkey"},
    "get_owners": {"job_pkey"},
    "count_pending": {"job_lane"},
    "count_by_state": {"job_due", "job_lane", "job_pkey", "job_troubled"},
}
ASKED_BY_API = {"ids": "'{1,2,3}'", "tenants": "'{tenant 1}'", "tenant": "'tenant 1'", "own": "true", "most": "1000"}
NOTHING_MORE = dict.fromkeys(("type", "tenant", "kind", "since", "until"), "null")


def plan(conn: Connection, name: str, argument: str = "null", **given: str) -> str:
    """The plan of a statement, as the session makes it; a daemon's makes it without a look at the arguments."""
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        if match[1] not in names:
            names.append(match[1])
        return f"${names.index(match[1]) + 1}"

    text = re.sub(r"%\((\w+)\)s", number, statement(name).decode()).replace("%%", "%")
    conn.execute(f"prepare hot as {text}".encode(), prepare=False)
    arguments = f"({', '.join(given.get(name, argument) for name in names)})" if names else ""
    rows = conn.execute(f"explain (costs off) execute hot{arguments}".encode(), prepare=False).fetchall()
    conn.execute("deallocate hot", prepare=False)
    return "\n".join(line for (line,) in rows)


def add(conn: psycopg.Connection, count: int) -> None:
    """Most are pending in four lanes; some are due, running and finished, as in a queue."""
    conn.execute(
        """
        insert into dispatcher.job (type, tenant, state, run_at, owner, attempt, finished_at, payload)
        select 'quick', 'tenant ' || n %% 4,
               case when n %% 10 < 6 then 'pending' when n %% 10 < 7 then 'scheduled' when n %% 10 < 9 then 'succeeded'
                    else 'failed' end,
               case when n %% 10 = 6 then now() + interval '1 day' end, 1, 1,
               case when n %% 10 > 6 then now() end, '{}'
        from generate_series(1, %s) n
        """,
        (count,),
    )


TABLES = ("job", "claim", "type", "batch", "dependency", "follow_up")
ANALYZE = "analyze " + ", ".join(f"dispatcher.{table}" for table in TABLES)


def around(conn: psycopg.Connection, count: int) -> None:
    """Batches, dependencies and marks."""
    conn.execute("insert into dispatcher.batch (job_id, total) select n, 1 from generate_series(1, %s) n", [count])
    conn.execute("insert into dispatcher.dependency select n, n - 1, 'run' from generate_series(2, %s) n", [count])
    conn.execute("insert into dispatcher.follow_up (job_id) select n from generate_series(1, %s) n", [count])


def pages_to_explain(conn: psycopg.Connection) -> dict[str, int]:
    """How many pages dispatcher.explain looks at for the youngest job of each state that has one."""
    found = {}
    for state, column in (("pending", "listed"), ("scheduled", "listed"), ("succeeded", "state"), ("failed", "state")):
        row = conn.execute(
            f"select id from dispatcher.job where {column} = '{state}' order by id desc limit 1".encode()
        ).fetchone()
        if row is not None:
            text = "explain (analyze, buffers, format json) select dispatcher.explain(%s)"
            conn.execute(text.encode(), row)  # once before: what it reads of the catalog is cached then
            answer = conn.execute(text.encode(), row).fetchone()
            assert answer is not None
            top = answer[0][0]["Plan"]
            found[state] = top["Shared Hit Blocks"] + top["Shared Read Blocks"]
    return found


@pytest.fixture(scope="module")
def database(server: EmbeddedPostgres) -> Iterator[str]:
    """A database that grows to a million jobs."""
    name = servers.add_database(server, template=servers.MIGRATED)
    yield servers.role_dsn(server, name)
    servers.drop_database(server, name)


@pytest.fixture(scope="module")
def pages() -> Pages:
    """Filled by `plans`: pages that dispatcher.explain looks at, at each stage."""
    return {}


@pytest.fixture(scope="module")
def plans(database: str, pages: Pages) -> Plans:
    """All plans at each stage; autovacuum does not interfere."""
    found: Plans = {}

    def note(stage: str) -> None:
        with session(database) as daemon:
            found.update({(stage, name): plan(daemon, name) for name in {**EXPECTED, **AROUND}})
        with psycopg.connect(database, autocommit=True) as client:
            pages.update({(stage, state): count for state, count in pages_to_explain(client).items()})
            for name in LISTS:
                found[stage, name] = plan(client, name, **ASKED)
                found[stage, f"{name} of all"] = plan(client, name, **{**ASKED, **NOTHING_MORE})
        with psycopg.connect(database, autocommit=True) as api:
            for mode in ("force_custom_plan", "force_generic_plan"):
                api.execute(statement("pin_session"), pinned(SessionLimits(), plan_cache_mode=mode))
                for name in SERVING:
                    found[stage, f"{name} {mode}"] = plan(api, name, **ASKED_BY_API)

    with psycopg.connect(database, autocommit=True) as conn:
        publish(conn)
        for table in TABLES:
            conn.execute(f"alter table dispatcher.{table} set (autovacuum_enabled = off)".encode())
        note(STAGES[0])
        # A plan is kept until the next statistics are taken: one that is made for a few rows has to do for very many.
        add(conn, 20)
        around(conn, 20)
        conn.execute(ANALYZE.encode())
        note(STAGES[1])
        conn.execute("update dispatcher.job set state = 'succeeded', run_at = null, finished_at = now()")
        conn.execute(ANALYZE.encode())
        note(STAGES[2])
        conn.execute(
            "truncate dispatcher.job, dispatcher.batch, dispatcher.dependency, dispatcher.follow_up restart identity"
        )
        conn.execute(ANALYZE.encode())
        add(conn, 200_000)
        around(conn, 50_000)
        note(STAGES[3])
        add(conn, 800_000)
        note(STAGES[4])
        conn.execute(ANALYZE.encode())
        note(STAGES[5])
    return found


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", EXPECTED)
def test_jobs_are_found_by_index_in_nested_loops(plans: Plans, stage: str, name: str) -> None:
    text = plans[stage, name]
    used = set(re.findall(r"Index (?:Only )?Scan(?: Backward)? using (job_\w+) on job", text))
    assert used == EXPECTED[name], text
    assert ("Tid Scan on job" in text) == (name == "claim_jobs"), text
    # None is read as a whole: a plan that was made for a few rows would look at all of them when there are many.
    whole = re.findall(r"Scan(?: Backward)? using (job_\w+) on job.*\n(?!.*Index Cond)", text)
    assert set(whole) <= WALKED.get(name, set()), text
    for bad in ("Seq Scan on job", "Hash Join", "Merge Join", "Bitmap", "Gather"):
        assert bad not in text, text


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", AROUND)
def test_batches_dependencies_and_marks_are_found_by_index(plans: Plans, stage: str, name: str) -> None:
    text = plans[stage, name]
    scan = re.compile(r"Scan(?: Backward)? using ((?:batch|dependency|follow_up|schedule)_\w+) on .*\n?(.*)")
    used = {index for index, _ in scan.findall(text)}
    assert used, text
    assert used <= AROUND[name], text
    if name != "list_due_schedules":  # reads from the front, in order
        assert all("Index Cond" in condition for _, condition in scan.findall(text)), text
    else:
        assert "Sort" not in text, text
    for bad in ("Seq Scan on (batch|dependency|follow_up)", "Hash Join", "Merge Join", "Bitmap", "Materialize"):
        assert not re.search(bad, text), text


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["claim_jobs", "claim_free_jobs", "share_lanes", "share_aged_lanes"])
def test_a_lane_is_read_from_the_cursor_on_and_already_in_order(plans: Plans, stage: str, name: str) -> None:
    text = plans[stage, name]
    scan = text.index("using job_lane")
    condition = text[scan:].splitlines()[1]
    for part in ("Index Cond", "type", "tenant", "ROW(", "> ROW("):
        assert part in condition, text
    limit = text[:scan].rindex("Limit")
    assert "Sort" not in text[limit:scan], text


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["next_due", "promote_jobs"])
def test_due_jobs_are_read_in_order(plans: Plans, stage: str, name: str) -> None:
    text = plans[stage, name]
    scan = text.index("using job_due")
    assert "Sort" not in text[:scan], text


@pytest.mark.parametrize("stage", STAGES)
def test_pages_of_the_walk_are_read_in_order(plans: Plans, stage: str) -> None:
    text = plans[stage, "prune_jobs"]
    assert "Sort" not in text[: text.index("using job_pkey")], text


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("more", ["", " of all"])
@pytest.mark.parametrize("name", LISTS)
def test_lists_are_read_by_index_in_any_session(plans: Plans, stage: str, name: str, more: str) -> None:
    text = plans[stage, name + more]
    if stage in STAGES[:3]:  # any plan will do where there is nothing, and each page is planned anew
        return
    used = set(re.findall(r"Scan(?: Backward)? (?:using|on) (job_\w+)", text))
    assert used == LISTS[name], text
    for bad in ("Seq Scan on job", "Hash Join", "Merge Join", "Gather"):
        assert bad not in text, text


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("name", SERVING)
def test_the_api_finds_jobs_by_index_whatever_the_statistics(plans: Plans, stage: str, mode: str, name: str) -> None:
    """A plan that was made over an empty table is kept until there are statistics."""
    text = plans[stage, f"{name} {mode}"]
    used = set(re.findall(r"Index (?:Only )?Scan(?: Backward)? using (job_\w+)", text))
    wanted = SERVING[name]
    assert used <= wanted, text
    assert used == wanted or name == "count_by_state", text  # planned for one tenant, it leaves out what that has not
    for bad in ("Seq Scan on job", "Hash Join", "Merge Join", "Bitmap", "Gather"):
        assert bad not in text, text


def reads(conn: Connection, statement: str, **params: Any) -> tuple[Any, dict[str, int]]:
    """A statement's answer, and the rows of the job table that it read, by index, or by `job` without one."""
    look = b"""
        select 'job', seq_tup_read from pg_stat_xact_user_tables where relname = 'job'
        union all
        select s.indexrelname, pg_stat_get_xact_tuples_returned(s.indexrelid)
        from pg_stat_user_indexes s where s.relname = 'job'
    """
    with conn.transaction():
        before: dict[str, int] = dict(conn.execute(look).fetchall())
        answer = conn.execute(statement.encode(), params).fetchone()
        after: dict[str, int] = dict(conn.execute(look).fetchall())
    # The planner itself looks at the ends of an index: that is no way to find jobs.
    return answer, {name: after[name] - before[name] for name in after if after[name] - before[name] > 9}


FIND: dict[str, Any] = dict.fromkeys(("type", "tenant", "states", "kind", "since", "until")) | {"before": 2**63 - 1}


def test_walks_stop_where_they_may_and_failed_jobs_are_found_without_a_look_at_the_others(
    plans: Plans, database: str
) -> None:
    find = statement("find_jobs").decode()
    with psycopg.connect(database, autocommit=True) as client:
        for turn in range(7):  # also once there is a plan for any arguments
            # What earlier turns retried and purged may still be read: index entries stay until no snapshot needs them.
            dead = 200 * turn
            (ids, following), rows = reads(client, find, **{**FIND, "limit": 50, "examine": 50_000})
            assert len(ids) == 50
            assert following == ids[-1]
            assert rows.keys() == {"job_pkey"}
            assert rows["job_pkey"] <= 200 + dead
            asked = {**FIND, "states": ["failed", "canceled"], "limit": 50, "examine": 50_000}
            (ids, following), rows = reads(client, find, **asked)
            assert len(ids) == 50
            assert rows.keys() == {"job_troubled"}
            assert rows["job_troubled"] <= 200 + dead
            (ids, following), rows = reads(client, find, **{**asked, "type": "none", "examine": 1000})
            assert (ids, following is None) == ([], False)
            assert rows.keys() == {"job_troubled"}
            assert 2000 <= rows["job_troubled"] <= 2000 + 2 * dead
            answer, rows = reads(client, """select dispatcher.count_ended('{"type": "none"}')""")
            assert answer == (0,)
            assert rows.keys() == {"job_troubled"}
            answer, rows = reads(client, """select * from dispatcher.retry_where('{"all": true, "limit": 100}')""")
            assert answer == (100, 0)
            assert rows["job_troubled"] <= 400 + 2 * dead
            assert rows["job_pkey"] <= 4_000
            assert rows.keys() <= {"job_troubled", "job_pkey", "job_lane"}
            for state, index in (("failed", "job_troubled"), ("succeeded", "job_pkey")):
                purge = f"""select * from dispatcher.purge('{{"state": "{state}", "limit": 100}}')"""
                answer, rows = reads(client, purge)
                assert answer == (100, 0)
                assert rows.keys() <= {"job_troubled", "job_pkey"}
                assert rows[index] <= 4_000


def test_pending_jobs_are_found_by_jumps_from_turn_to_turn(plans: Plans, database: str) -> None:
    """Pages touched, since entries of an index that are skipped one by one are not counted anywhere."""
    find = b"explain (analyze, buffers, format json) " + statement("find_pending_jobs")
    with psycopg.connect(database, autocommit=True) as client:
        for more in ({}, {"type": "quick"}, {"tenant": "tenant 1"}, {"type": "quick", "tenant": "tenant 1"}):
            for before in (2**63 - 1, 60):
                row = client.execute(find, {**FIND, **more, "limit": 50, "examine": 50, "before": before}).fetchone()
                assert row is not None
                top = row[0][0]["Plan"]
                assert top["Shared Hit Blocks"] + top["Shared Read Blocks"] <= 1_000, more


def test_a_million_rows_cost_no_time(plans: Plans, database: str) -> None:
    """Far above what it takes, and far below what it takes to look at every row."""
    with session(database) as daemon:
        backend = psutil.Process(daemon.info.backend_pid)

        def spent_s() -> float:
            """Of a core, by both ends: others on the machine do not count."""
            return float(time.process_time() + sum(backend.cpu_times()[:2]))

        def took_s() -> float:
            began = spent_s()
            lanes = claims.list_lanes(daemon)
            claimed = claim(daemon, lanes[0].lane.type, take=1000, tenant=lanes[0].lane.tenant)
            results = [Outcome.succeeded(as_job(each), None) for each in claimed]
            assert len(outcomes.finish_jobs(daemon, OWNER, results, free_only=False)) == 1000
            assert upkeep.next_due(daemon)[0] is not None
            took = spent_s() - began
            assert len(lanes) == 4
            return took

        assert quickest(took_s, within_s=0.3) < 0.3


def test_what_follows_a_job_is_found_by_index_whenever_the_function_was_planned(plans: Plans, database: str) -> None:
    """Pages touched: the pruner asks of each job that it removes, after many it has a plan for any."""
    with session(database) as daemon:
        for id in range(1000, 1010):
            look = b"explain (analyze, buffers, format json) select dispatcher.is_awaited(%s)"
            row = daemon.execute(look, [id]).fetchone()
            assert row is not None
            top = row[0][0]["Plan"]
            assert id == 1000 or top["Shared Hit Blocks"] + top["Shared Read Blocks"] < 20


def test_reader_s_own_session_finds_a_job_by_its_key(plans: Plans, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as client:
        text = plan(client, "get_job", argument="1")
    assert "Index Scan using job_pkey on job" in text
    assert "Seq Scan on job" not in text


@pytest.mark.parametrize("stage", [STAGES[1], *STAGES[3:]])
def test_explaining_a_job_reads_few_pages_of_a_large_table(plans: Plans, pages: Pages, stage: str) -> None:
    found = {state: count for (at, state), count in pages.items() if at == stage}
    print(stage, found)
    assert set(found) == {"pending", "scheduled", "succeeded", "failed"}
    assert found.pop("pending") < 11_000  # those ahead are counted, ten thousand at most
    assert max(found.values()) < 100
