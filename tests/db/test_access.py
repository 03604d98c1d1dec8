"""Rights by level: what a role of each may do, what it may not, and that migrations and mistakes leak none."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from dispatcher.sql import migrations, statement
from psycopg import conninfo, sql

from dispatcher import migrate
from dispatcher.cli import main
from dispatcher.client import Client
from dispatcher.db import Connection, SessionLimits, connect_session
from dispatcher.errors import DatabaseUnavailable, DispatcherError, SchemaError
from dispatcher.queries import stats
from dispatcher.tally import Tally
from tests.db.contenders import contender, register
from tests.db.front_door import end
from tests.db.running import claim, enqueue, publish, session, state, value
from tests.unit.test_tally import tries

LEVELS = ["enqueue", "read", "operate", "run"]
# Tables that only the daemon and the owner need; whatever else a migration brings is of a level, or stands here.
INTERNAL = {"access", "answer", "callback", "follow_up", "installation", "token"}
Make = Callable[..., str]
Steps = list[tuple[int, str, str]]


@pytest.fixture
def role(superuser_dsn: str, dsn: str) -> Iterator[Make]:
    """Makes roles that may log in, without any right; their names."""
    made: list[str] = []
    with psycopg.connect(superuser_dsn, autocommit=True) as admin:

        def make(*levels: str, name: str = "") -> str:
            name = name or f"role_{secrets.token_hex(6)}"
            admin.execute(sql.SQL("create role {} login").format(sql.Identifier(name)))
            made.append(name)
            with psycopg.connect(dsn, autocommit=True) as owner:
                for level in levels:
                    owner.execute("select dispatcher.grant_access(%s, %s)", (name, level))
            return name

        yield make
        for name in made:
            for text in ("drop owned by {}", "drop role {}"):
                admin.execute(sql.SQL(text).format(sql.Identifier(name)))


@pytest.fixture
def login(dsn: str, role: Make) -> Iterator[Callable[..., Connection]]:
    """Connections of new roles of these levels."""
    with contextlib.ExitStack() as opened:
        yield lambda *levels: opened.enter_context(psycopg.connect(dsn, user=role(*levels), autocommit=True))


@pytest.fixture(autouse=True)
def types(conn: Connection) -> None:
    publish(conn)


def denied(conn: psycopg.Connection[Any], query: str, *params: Any) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute(query.encode(), params or None)


def refused(conn: psycopg.Connection[Any], query: str, *params: Any) -> str:
    """The one line with which it is refused."""
    with pytest.raises(psycopg.Error) as caught:
        conn.execute(query.encode(), params)
    message = caught.value.diag.message_primary or ""
    assert len(message.splitlines()) == 1
    return message


def with_more(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """As if a later version brought this migration."""
    steps: Steps = [*migrations(), (9001, "later", text)]
    monkeypatch.setattr(migrate, "migrations", lambda: steps)


# The catalog.


def test_no_function_is_for_everybody(conn: Connection) -> None:
    rows = conn.execute(
        "select p.oid::regprocedure::text from pg_proc p where p.pronamespace = 'dispatcher'::regnamespace"
        " and has_function_privilege('public', p.oid, 'execute')"
    ).fetchall()
    assert rows == []
    granted = (
        "select count(*) from pg_class c, aclexplode(c.relacl) a"
        " where a.grantee = 0 and c.relnamespace = 'dispatcher'::regnamespace"
    )
    assert value(conn, granted) == 0


def test_functions_with_the_owner_s_rights_have_a_fixed_search_path(conn: Connection) -> None:
    """Those that they call inherit it."""
    rows = conn.execute(
        "select p.oid::regprocedure::text, p.proconfig from pg_proc p"
        " where p.pronamespace = 'dispatcher'::regnamespace and p.prosecdef"
    ).fetchall()
    assert len(rows) >= 6
    for name, settings in rows:
        assert "search_path=pg_catalog, pg_temp" in (settings or []), name


def test_functions_that_look_up_types_when_first_called_have_a_fixed_search_path(conn: Connection) -> None:
    rows = conn.execute(
        "select p.oid::regprocedure::text from pg_proc p join pg_language l on l.oid = p.prolang"
        " where p.pronamespace = 'dispatcher'::regnamespace and l.lanname = 'plpgsql'"
        " and 'search_path=pg_catalog, pg_temp' <> all(coalesce(p.proconfig, '{}'))"
    ).fetchall()
    assert rows == []


def test_functions_that_users_call_belong_to_a_level(conn: Connection) -> None:
    """Those run with the owner's rights; what is in no list is the daemon's own."""
    listed = {name for (name,) in conn.execute("select name from dispatcher.access_rights() where kind = 'function'")}
    rows = conn.execute(
        "select p.proname from pg_proc p where p.pronamespace = 'dispatcher'::regnamespace"
        " and p.prosecdef and p.prorettype <> 'trigger'::regtype"
    ).fetchall()
    assert {name for (name,) in rows} <= listed


def test_tables_belong_to_a_level_or_to_the_daemon(conn: Connection) -> None:
    listed = {
        name
        for (name,) in conn.execute("select name from dispatcher.access_rights() where level in ('read', 'operate')")
    }
    rows = conn.execute(
        "select relname from pg_class"
        " where relnamespace = 'dispatcher'::regnamespace and relkind in ('r', 'v', 'p', 'm')"
    ).fetchall()
    assert {name for (name,) in rows} - listed == INTERNAL


# Each level.


FORBIDDEN_TO_ALL = [
    "select dispatcher.grant_access('app', 'run')",
    "select dispatcher.revoke_access('app', 'run')",
    "select dispatcher.apply_access()",
    "select dispatcher.apply_level('app', 'run', true)",
    "select from dispatcher.access",
    "insert into dispatcher.access (role, level) values (current_user, 'run')",
    "delete from dispatcher.migration",
    "create table dispatcher.mine ()",
    "create function dispatcher.enqueue(text) returns bigint language sql as 'select 1'",
    "alter table dispatcher.job add column mine text",
    "alter table dispatcher.job disable trigger signal",
    "drop function dispatcher.enqueue(text, jsonb, jsonb)",
    "truncate dispatcher.job",
]
WRITES = [
    "insert into dispatcher.job (type, state, payload) values ('quick', 'pending', '{}')",
    "update dispatcher.job set state = 'running', attempt = attempt + 1",
    "delete from dispatcher.job",
    "update dispatcher.type set max_running = 0",
    "update dispatcher.lease set term = 0",
    "insert into dispatcher.claim (owner, term, job_ids) values (1, 1, '{1}')",
    "delete from dispatcher.replica",
    "insert into dispatcher.control (type, paused_at) values ('quick', now())",
    "insert into dispatcher.throttle values ('quick', now())",
    "insert into dispatcher.dependency values (1, 2, 'cancel')",
    "insert into dispatcher.tally (grain, at, type) values ('hour', now(), 'quick')",
    "insert into dispatcher.schedule (name, cron, type) values ('a', '* * * * *', 'quick')",
    "select dispatcher.complete(1, 1, 'null')",
    "select dispatcher.checkpoint(1, 1, 'null')",
    "select dispatcher.own_batch(1, 1, 1)",
    "select dispatcher.wait_lease(1, 1)",
    "select dispatcher.doze(1, true)",
]
READS = [
    "select payload from dispatcher.jobs",
    "select result from dispatcher.jobs",
    "select errors from dispatcher.jobs",
    "select * from dispatcher.jobs",
    "select id from dispatcher.job",
    "select max_running from dispatcher.type",
    "select from dispatcher.replica",
    "select from dispatcher.claim",
    "select from dispatcher.control",
    "select from dispatcher.schedule",
    "select from dispatcher.tally",
    "select dispatcher.explain(1)",
]


@pytest.mark.parametrize("level", LEVELS)
def test_no_level_grants_or_changes_the_schema(login: Callable[..., Connection], level: str) -> None:
    own = login(level)
    for query in FORBIDDEN_TO_ALL:
        denied(own, query)


@pytest.mark.parametrize("level", ["enqueue", "read", "operate"])
def test_who_does_not_run_jobs_writes_no_row(login: Callable[..., Connection], level: str) -> None:
    own = login(level)
    for query in WRITES:
        denied(own, query)


def test_role_without_a_level_can_do_nothing(login: Callable[..., Connection]) -> None:
    own = login()
    for query in [*FORBIDDEN_TO_ALL, *WRITES, *READS, "select dispatcher.enqueue('quick')"]:
        denied(own, query)


def test_enqueuer_sees_states_and_nothing_of_others(conn: Connection, login: Callable[..., Connection]) -> None:
    secret = enqueue(conn, payload={"password": "s3cret"})
    own = login("enqueue")
    for query in READS:
        denied(own, query)
    id = enqueue(own, unique_key="k")
    assert (
        value(own, "select created from dispatcher.enqueue_unique('quick', '{}', '{\"unique_key\": \"k\"}')") is False
    )
    assert len(own.execute("select dispatcher.enqueue_many('quick', array['{}', '{}']::jsonb[])").fetchall()) == 2
    assert value(own, "select state from dispatcher.jobs where id = %s", secret) == "pending"
    assert value(own, "select dispatcher.cancel(%s)", id) == "canceled"
    assert value(own, "select dispatcher.retry(%s)", id) == "pending"


def test_enqueuer_s_client_enqueues_and_says_in_one_line_what_it_lacks(dsn: str, role: Make) -> None:
    with Client(conninfo.make_conninfo(dsn, user=role("enqueue"))) as client:
        id = client.enqueue("quick", {"a": 1})
        assert client.enqueue_many("quick", [{}, {}]) == [id + 1, id + 2]
        assert client.cancel(id) == "canceled"
        assert client.retry(id) == "pending"
        for ask in (
            lambda: client.get(id),
            lambda: client.explain(id),
            client.list,
            client.replicas,
            client.types,
            client.stats,
        ):
            with pytest.raises(SchemaError) as caught:
                ask()
            assert "permission denied for " in str(caught.value)
            assert "select dispatcher.grant_access('ROLE', 'LEVEL')" in str(caught.value)
            assert "\n" not in str(caught.value)


def test_enqueuer_s_own_mark_silences_only_its_own_session(
    dsn: str, conn: Connection, login: Callable[..., Connection]
) -> None:
    """dispatcher.signaled can be set by anybody, for a session of his own."""
    listening = psycopg.connect(dsn, autocommit=True)
    with listening:
        listening.execute("listen dispatcher_1")
        silent, other = login("enqueue"), login("enqueue")
        silent.execute("set dispatcher.signaled = '1'")
        enqueue(silent)
        enqueue(other)
        heard = [note.pid for note in listening.notifies(timeout=0.5)]
    assert heard == [other.info.backend_pid]


def test_reader_sees_everything_and_asks_everything(conn: Connection, dsn: str, role: Make) -> None:
    id = enqueue(conn, payload={"a": 1})
    end(conn, id, "succeeded", result=7)
    pending = enqueue(conn)
    name = role("read")
    with (
        contender(dsn, register(conn), duration_s=30) as lease,
        Client(conninfo.make_conninfo(dsn, user=name)) as client,
    ):
        assert lease.connect()
        assert lease.contend()
        assert client.get(id).payload == {"a": 1}
        assert client.result(id) == 7
        assert client.wait(id, timeout=5).id == id
        assert [job.id for job in client.list()] == [pending, id]
        assert {one.name for one in client.types()} == {"quick", "slow"}
        [replica] = client.replicas()
        assert (replica.alive, replica.leads) == (True, True)
        leader = client.leader()
        assert leader is not None
        assert leader.replica == replica.id
        assert [reason.kind for reason in client.explain(pending).reasons] == ["no_replica"]
        assert client.stats() == client.stats("acme") == []
        for act in (lambda: client.enqueue("quick"), lambda: client.cancel(pending), lambda: client.retry(id)):
            with pytest.raises(SchemaError, match="grant_access"):
                act()
        for args in (["job", "list"], ["leader", "show"], ["replica", "list"], ["migrate", "--check"]):
            run = CliRunner(env={"DISPATCHER_DSN": conninfo.make_conninfo(dsn, user=name), "DISPATCHER_CONFIG": None})
            result = run.invoke(main, args)
            assert result.exit_code == 0, result.output
    assert state(conn, pending) == "pending"


def test_operator_reads_and_enqueues(dsn: str, role: Make) -> None:
    with Client(conninfo.make_conninfo(dsn, user=role("operate"))) as client:
        id = client.enqueue("quick")
        assert client.get(id).state == "pending"
        assert client.explain(id).id == id
        assert client.cancel(id) == "canceled"
        assert client.ask_to_resign() is None


def test_runner_leads_claims_and_completes(dsn: str, conn: Connection, role: Make) -> None:
    own_dsn = conninfo.make_conninfo(dsn, user=role("run"))
    with psycopg.connect(own_dsn, autocommit=True) as own:
        id = enqueue(own)
        with contender(own_dsn, register(own)) as lease:
            assert lease.connect()
            assert lease.contend()
            assert lease.conn is not None
            [claimed] = claim(lease.conn)
        with own.transaction():
            batch = value(own, "select dispatcher.enqueue_batch('quick', array['{}']::jsonb[])")
            assert value(own, "select dispatcher.own_batch(%s, %s, %s)", batch, claimed.id, claimed.attempt)
        with own.transaction():
            own.execute("select dispatcher.complete(%s, %s, '7')", (claimed.id, claimed.attempt))
    assert state(conn, id) == "succeeded"
    assert state(conn, batch) == "running"


def test_runner_s_own_types_take_no_part_in_what_the_owner_does(
    conn: Connection, login: Callable[..., Connection]
) -> None:
    """PL/pgSQL keeps the types of a function's variables for the session, from whoever called it first."""
    own = login("run")
    heard: list[str] = []
    own.add_notice_handler(lambda notice: heard.append(notice.message_primary or ""))
    own.execute(
        "create function pg_temp.seen(value pg_catalog.text) returns boolean language plpgsql as $$"
        " begin raise notice 'as %', current_user; return true; end $$"
    )
    own.execute("create domain pg_temp.text as pg_catalog.text check (pg_temp.seen(value))")
    own.execute("""select dispatcher.parse_options('{"priority": 1}')""")
    own.execute("""select dispatcher.enqueue('quick', '{}', '{"priority": 1}')""")
    assert heard == []


# Granting and revoking.


@pytest.mark.parametrize(
    ("role", "level", "told"),
    [
        ("nobody_of_this_name", "read", "there is no role 'nobody_of_this_name'"),
        ("public", "enqueue", "there is no role 'public'"),
        (None, "enqueue", "there is no role NULL"),
        ("app", "read", "the role 'app' owns the schema dispatcher"),
        ("app", "write", "there is no level 'write': the levels are enqueue, read, operate and run"),
        ("app", None, "there is no level NULL"),
        ("app", "owner", "there is no level 'owner'"),
    ],
)
def test_bad_grant_is_one_line_and_changes_nothing(conn: Connection, role: str, level: str, told: str) -> None:
    for function in ("grant_access", "revoke_access"):
        assert told in refused(conn, f"select dispatcher.{function}(%s, %s)", role, level)
    assert value(conn, "select count(*) from dispatcher.access") == 0


def test_name_that_has_to_be_quoted(dsn: str, conn: Connection, role: Make) -> None:
    name = role("enqueue", name=f'Ada "the first"; drop table x -- {secrets.token_hex(4)}')
    with psycopg.connect(dsn, user=name, autocommit=True) as own:
        enqueue(own)
    conn.execute("select dispatcher.revoke_access(%s, 'enqueue')", [name])
    with psycopg.connect(dsn, user=name, autocommit=True) as own:
        denied(own, "select dispatcher.enqueue('quick')")


def test_what_another_level_holds_survives_a_revoke(conn: Connection, login: Callable[..., Connection]) -> None:
    own = login("enqueue", "read", "operate")
    name = own.info.user
    for level in ("operate", "read"):
        conn.execute("select dispatcher.revoke_access(%s, %s)", (name, level))
    enqueue(own)
    assert value(own, "select state from dispatcher.jobs") == "pending"
    denied(own, "select payload from dispatcher.jobs")
    denied(own, "select dispatcher.explain(1)")
    conn.execute("select dispatcher.revoke_access(%s, 'enqueue')", [name])
    assert not value(conn, "select has_schema_privilege(%s, 'dispatcher', 'usage')", name)
    conn.execute("select dispatcher.revoke_access(%s, 'enqueue')", [name])  # as often as one likes


@pytest.mark.parametrize("level", LEVELS)
def test_revoked_level_leaves_no_right_behind(superuser_dsn: str, conn: Connection, role: Make, level: str) -> None:
    name = role(level)
    conn.execute("select dispatcher.revoke_access(%s, %s)", (name, level))
    # A role can be dropped only if no object of the database still grants it anything.
    with psycopg.connect(superuser_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))
        admin.execute(sql.SQL("create role {}").format(sql.Identifier(name)))


def test_group_hands_its_level_to_its_members(superuser_dsn: str, dsn: str, role: Make) -> None:
    group, member = role("enqueue"), role()
    with psycopg.connect(superuser_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("grant {} to {}").format(sql.Identifier(group), sql.Identifier(member)))
    with psycopg.connect(dsn, user=member, autocommit=True) as own:
        assert enqueue(own)


def test_grants_at_the_same_time_all_succeed(dsn: str, conn: Connection, role: Make) -> None:
    """Two that write one function's rights at once would fail: "tuple concurrently updated"."""
    names, errors, go = [role() for _ in range(6)], [], threading.Barrier(7)

    def run(act: Callable[[], object]) -> None:
        go.wait()
        try:
            act()
        except (psycopg.Error, DispatcherError) as exc:
            errors.append(exc)

    def grant(name: str) -> None:
        with psycopg.connect(dsn, autocommit=True) as own:
            own.execute("select dispatcher.grant_access(%s, 'run')", [name])

    threads = [threading.Thread(target=run, args=(lambda name=name: grant(name),)) for name in names]
    threads.append(threading.Thread(target=run, args=(lambda: migrate.migrate(dsn),)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert value(conn, "select count(*) from dispatcher.access") == 6


# Migrations.


def test_later_migration_s_functions_go_to_their_level_and_to_nobody_else(
    dsn: str, login: Callable[..., Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = {level: login(level) for level in LEVELS}
    with_more(
        monkeypatch,
        "create function dispatcher.pause(a date) returns integer language sql as 'select 1';"
        "create function dispatcher.helper() returns integer language sql as 'select 2';"
        "create table dispatcher.hidden (a serial)",
    )
    assert migrate.migrate(dsn) == ["9001_later"]
    assert value(readers["operate"], "select dispatcher.pause('today'::date)") == 1
    for level in ("enqueue", "read"):
        denied(readers[level], "select dispatcher.pause('today'::date)")
    for level in ("enqueue", "read", "operate"):
        denied(readers[level], "select dispatcher.helper()")
        denied(readers[level], "select from dispatcher.hidden")
    assert value(readers["run"], "select dispatcher.helper()") == 2
    readers["run"].execute("insert into dispatcher.hidden default values")


def test_view_that_a_migration_makes_anew_keeps_its_readers(
    dsn: str, conn: Connection, login: Callable[..., Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = login("read")
    with_more(
        monkeypatch, "drop view dispatcher.jobs; create view dispatcher.jobs as select id, state from dispatcher.job"
    )
    migrate.migrate(dsn)
    assert own.execute("select id from dispatcher.jobs").fetchall() == []


def test_later_role_of_the_same_name_inherits_nothing(
    superuser_dsn: str, dsn: str, conn: Connection, role: Make
) -> None:
    name = role("run")
    with psycopg.connect(superuser_dsn, autocommit=True) as admin:
        for text in ("drop owned by {}", "drop role {}", "create role {} login"):
            admin.execute(sql.SQL(text).format(sql.Identifier(name)))
    migrate.migrate(dsn)
    assert value(conn, "select count(*) from dispatcher.access") == 0
    with psycopg.connect(dsn, user=name, autocommit=True) as own:
        denied(own, "select dispatcher.enqueue('quick')")


def test_level_taken_by_other_means_does_not_come_back(
    superuser_dsn: str, conn: Connection, login: Callable[..., Connection]
) -> None:
    """`drop owned by`, as before a role is dropped; then the role is let in again for less."""
    own = login("run")
    name = own.info.user
    with psycopg.connect(superuser_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("drop owned by {}").format(sql.Identifier(name)))
    conn.execute("select dispatcher.grant_access(%s, 'enqueue')", [name])
    conn.execute("select dispatcher.apply_access()")
    enqueue(own)
    denied(own, "select payload from dispatcher.jobs")
    assert conn.execute("select level from dispatcher.access").fetchall() == [("enqueue",)]


def test_grant_by_hand_survives_a_migration(conn: Connection, dsn: str, login: Callable[..., Connection]) -> None:
    own = login("enqueue")
    conn.execute(sql.SQL("grant select on dispatcher.replica to {}").format(sql.Identifier(own.info.user)))
    migrate.migrate(dsn)
    assert own.execute("select from dispatcher.replica").fetchall() == []


def test_role_that_could_enqueue_before_there_were_levels_still_can(empty_dsn: str, role: Make) -> None:
    name = role()
    with psycopg.connect(empty_dsn, autocommit=True) as owner:
        owner.execute(statement("make_schema"))
        owner.execute(statement("make_migration_tables"))
        for version, title, text in migrations():
            if version < 8:
                owner.execute(text.encode(), prepare=False)
                owner.execute(statement("record_migration"), {"version": version, "name": title})
        owner.execute(sql.SQL("grant usage on schema dispatcher to {}").format(sql.Identifier(name)))
        migrate.migrate(empty_dsn)
        publish(owner)
        with psycopg.connect(empty_dsn, user=name, autocommit=True) as own:
            assert enqueue(own) == 1
            denied(own, "select payload from dispatcher.jobs")
        owner.execute("select dispatcher.revoke_access(%s, 'enqueue')", [name])


def test_superuser_may_migrate_and_grant(server: Any, empty_dsn: str, role: Make) -> None:
    user = conninfo.conninfo_to_dict(server.dsn)["user"]
    admin_dsn = conninfo.make_conninfo(empty_dsn, user=user)
    migrate.migrate(admin_dsn)
    name = role()
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        publish(admin)
        admin.execute("select dispatcher.grant_access(%s, 'run')", [name])
        with psycopg.connect(empty_dsn, user=name, autocommit=True) as own:
            enqueue(own)
        with connect_session(conninfo.make_conninfo(empty_dsn, user=name), name="t", limits=SessionLimits()) as daemon:
            assert len(claim(daemon)) == 1
        admin.execute(sql.SQL("drop owned by {}").format(sql.Identifier(name)))


@pytest.mark.parametrize("printed", [False, True])
def test_what_a_superuser_migrates_belongs_to_the_owner_of_the_schema(
    superuser_dsn: str, dsn: str, conn: Connection, monkeypatch: pytest.MonkeyPatch, printed: bool
) -> None:
    """Else its functions would work with a superuser's rights, and the owner could neither grant nor migrate."""
    more = "create function dispatcher.pause(a date) returns integer security definer language sql as 'select 1'"
    if printed:
        run = CliRunner().invoke(main, ["migrate", "--sql"])
        script = run.stdout.rpartition("select set_config('role'")
        with psycopg.connect(superuser_dsn, autocommit=True) as admin:
            become = f"{script[1]}{script[2].partition(';')[0]}"
            admin.execute(f"begin; {become}; {more}; commit".encode(), prepare=False)
    else:
        with_more(monkeypatch, more)
        assert migrate.migrate(superuser_dsn) == ["9001_later"]
        assert migrate.migrate(dsn) == []
    owners = conn.execute(
        "select distinct pg_get_userbyid(p.proowner) from pg_proc p where p.pronamespace = 'dispatcher'::regnamespace"
    ).fetchall()
    assert owners == [(conn.info.user,)]
    assert value(conn, "select dispatcher.pause('today'::date)") == 1


# The daemon's first steps.


def test_replica_without_rights_says_which_it_needs(dsn: str, role: Make) -> None:
    def start(user: str) -> str:
        run = CliRunner(env={"DISPATCHER_DSN": conninfo.make_conninfo(dsn, user=user), "DISPATCHER_CONFIG": None})
        result = run.invoke(main, ["run", "--metrics-port", "0"])
        assert result.exit_code == 1
        assert result.stderr.count("\n") == 1
        return result.stderr

    for user in (role(), role("enqueue"), role("read"), role("operate")):
        assert "select dispatcher.grant_access('ROLE', 'LEVEL')" in start(user)


def test_session_without_rights_is_one_line(dsn: str, role: Make) -> None:
    with pytest.raises((DatabaseUnavailable, DispatcherError)) as caught:
        session(conninfo.make_conninfo(dsn, user=role()))
    assert "grant_access" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_replica_that_does_not_own_the_schema_tells_what_it_settled_and_a_reader_sees_it(
    dsn: str, conn: Connection, login: Callable[..., Connection], role: Make
) -> None:
    replica = register(conn)
    own = login("run")
    for number in (1, 2):  # the second adds to the rows of the first
        tally = Tally()
        tally.add({"quick": tries(0.1)})
        stats.add_tallies(own, replica=replica, number=number, tallies=list(tally.take().items()))
    stats.prune_tallies(own, 10)
    with Client(conninfo.make_conninfo(dsn, user=role("read"))) as client:
        assert [(one.type, one.day.finished) for one in client.stats()] == [("quick", 2)]
