"""The units under a real systemd: two replicas from the wheel and the HTTP API, on one host, with a real PostgreSQL."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
from psycopg import conninfo
from psycopg.rows import dict_row

from dispatcher import Client
from dispatcher.embedded import EmbeddedPostgres
from tests import servers
from tests.system import installation
from tests.system.installation import API, PORTS, UNITS, Host
from tests.system.machine import Machine, MachineError, nspawn

pytestmark = [pytest.mark.system, pytest.mark.systemd]

SOCKET = "/run/postgresql-of-the-test"
PROGRAMS = {"sleep": "/usr/bin/sleep", "sh": ["/usr/bin/sh", "-c"]}
# An executor for worker processes, as a user installs one.
SANDBOXED = """
import os, time
from pathlib import Path
from dispatcher import executor

@executor("sandboxed", pool="process", memory_limit="64MiB", max_attempts=2)
def sandboxed(job, ctx):
    if job.attempt == 1 and job.payload["then"] == "hold":
        time.sleep(60)
    if job.payload["then"] == "grow":
        bytearray(200 * 2**20)
    return {"oom": Path("/proc/self/oom_score_adj").read_text().strip(), "user": os.getuid()}
"""
ORPHAN_AFTER_S = 30.0
STOP_TIMEOUT_S = 25.0

T = TypeVar("T")
Database = psycopg.Connection[dict[str, Any]]


def wait_until(look: Callable[[], T | None], what: str, *, seconds: float = 15.0) -> T:
    """Looks again and again, as neither systemd nor a scrape tells us by itself."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return seen


@pytest.fixture(scope="module")
def host_dsn(server: EmbeddedPostgres) -> Iterator[str]:
    """An empty database, as seen from the host."""
    name = servers.add_database(server)
    yield servers.role_dsn(server, name)
    servers.drop_database(server, name)


@pytest.fixture(scope="module")
def installed(host_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Everything on it as docs/operations.md says, the replicas not started yet."""
    try:
        nspawn()
    except MachineError as exc:
        pytest.fail(f"systemd cannot be tested here: {exc}", pytrace=False)
    folder = tmp_path_factory.mktemp("systemd")
    added = folder / "added"
    wheel = installation.build_wheel(folder)
    installation.lay_out(added, wheel=wheel)
    imports = added / "srv/import"
    imports.mkdir(parents=True)
    (imports / "numbers.csv").write_text("n\n1\n2\n3\n")
    (added / "srv/executors").mkdir()
    (added / "srv/executors/sandboxed.py").write_text(SANDBOXED)
    sockets = Path(str(conninfo.conninfo_to_dict(host_dsn)["host"]))
    sockets.chmod(0o711)  # the user of the replicas has to get through
    _, binds, environment = installation.python()
    environment |= {
        "DISPATCHER_DSN": conninfo.make_conninfo(host_dsn, host=SOCKET),
        "DISPATCHER_COMMANDS": json.dumps(PROGRAMS),
        "DISPATCHER_IMPORT_ROOT": "/srv/import",
        "DISPATCHER_EXECUTORS": "sandboxed",
        "PYTHONPATH": "/srv/executors",
    }
    with Machine(folder, added=added, binds={SOCKET: sockets, **binds}) as machine:
        installation.install(machine, wheel=wheel)
        # After the example's own lines: the last one counts.
        lines = "".join(f"{name}='{value}'\n" for name, value in environment.items())
        append(machine, "/etc/dispatcher/dispatcher.env", "\n" + lines)
        for unit, port in PORTS.items():
            own = f"/etc/dispatcher/{unit.partition('@')[2]}.env"
            append(machine, own, f"DISPATCHER_METRICS_PORT={port}\n")
        migrate = f". /etc/dispatcher/dispatcher.env; {installation.HOME}/bin/dispatcher migrate"
        machine.run("sh", "-eauc", migrate)
        yield Host(machine)


def append(machine: Machine, path: str, text: str) -> None:
    """As an administrator would in an editor."""
    machine.run("sh", "-euc", 'printf "%s" "$2" >> "$1"', "sh", path, text)


@pytest.fixture
def host(installed: Host) -> Iterator[Host]:
    """Both replicas are up, and one of them leads."""
    try:
        installed.run("systemctl", "start", *UNITS)  # returns when both have said READY=1
        wait_until(installed.leader, "a replica leads")
        yield installed
    finally:
        print(installed.journal())  # pytest shows it where a test has failed


@pytest.fixture
def database(host_dsn: str) -> Iterator[Database]:
    with psycopg.connect(host_dsn, autocommit=True, row_factory=dict_row) as connection:
        yield connection


def enqueue(database: Database, type: str, payload: dict[str, Any], **options: Any) -> int:
    statement = "select dispatcher.enqueue(%s, %s::jsonb, %s::jsonb) as id"
    row = database.execute(statement, [type, json.dumps(payload), json.dumps(options)]).fetchone()
    assert row is not None
    number: int = row["id"]
    return number


def job(database: Database, number: int) -> dict[str, Any]:
    row = database.execute("select * from dispatcher.jobs where id = %s", [number]).fetchone()
    assert row is not None
    return row


def wait_for(database: Database, number: int, *states: str, seconds: float = 15.0) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        row = job(database, number)
        return row if row["state"] in states else None

    return wait_until(look, f"job {number} is {' or '.join(states)}", seconds=seconds)


def other(unit: str) -> str:
    return UNITS[1 - UNITS.index(unit)]


def test_units_are_valid_and_closed_up(installed: Host) -> None:
    names = ("dispatcher@.service", "dispatcher-api.service", "dispatcher-api.socket", "dispatcher.target")
    units = [f"/etc/systemd/system/{name}" for name in names]
    complaints = installed.run("sh", "-c", 'systemd-analyze verify "$@" 2>&1', "sh", *units)
    assert "dispatcher" not in complaints
    # Ends with 1 if the exposure is more than 2.0.
    for service in units[:2]:
        installed.run("systemd-analyze", "security", "--offline=true", "--threshold=20", service)


def test_start_waits_until_ready_and_jobs_run_in_the_sandbox(host: Host, database: Database) -> None:
    for unit in UNITS:
        assert host.show(unit)["ActiveState"] == "active"
        assert host.ask(unit, "/readyz")[0] == 200
        assert host.ask(unit, "/healthz")[0] == 200
    database.execute("create table if not exists numbers (n int)")
    imported = enqueue(database, "bulk_import", {"path": "numbers.csv", "table": "numbers"})
    # A program of a job sees its own folder, may not become root, and leaves nothing behind.
    script = "echo $((6 * 7)); id -un; touch here && rm here; grep NoNewPrivs /proc/self/status"
    ran = enqueue(database, "command", {"program": "sh", "args": [script]})
    assert wait_for(database, imported, "succeeded", "partial", "failed")["state"] == "succeeded"
    assert database.execute("select sum(n) from numbers").fetchone() == {"sum": 6}
    ended = wait_for(database, ran, "succeeded", "failed")
    assert ended["state"] == "succeeded", ended["errors"]
    assert "42\ndispatcher\nNoNewPrivs:\t1" in ended["result"]["stdout"]


def test_worker_processes_work_in_the_sandbox_and_die_with_their_replica(host: Host, database: Database) -> None:
    ended = wait_for(database, enqueue(database, "sandboxed", {"then": "end"}), "succeeded", "failed")
    assert ended["state"] == "succeeded", ended["errors"]
    assert ended["result"]["oom"] == "500"
    assert ended["result"]["user"] != 0
    grown = wait_for(database, enqueue(database, "sandboxed", {"then": "grow"}, max_attempts=1), "succeeded", "failed")
    assert "64.0MiB" in grown["errors"][0]["message"]
    leader = host.leader()
    assert leader is not None
    before = host.show(leader)
    held = enqueue(database, "sandboxed", {"then": "hold"})
    wait_for(database, held, "running")
    killed = time.monotonic()
    host.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", leader)
    assert wait_for(database, held, "succeeded", seconds=ORPHAN_AFTER_S)["attempt"] == 2
    assert time.monotonic() - killed < ORPHAN_AFTER_S / 2, "the death of replica and worker is proven"
    wait_until(lambda: up_again(host, leader, before), "systemd restarts it")


def test_reload_changes_a_limit_without_a_restart(host: Host) -> None:
    leader = host.leader()
    assert leader is not None
    before = host.show(leader)
    append(host.machine, "/etc/dispatcher/dispatcher.toml", "command = 3\n")
    host.run("systemctl", "reload", *UNITS)
    wait_until(lambda: host.metric(leader, 'dispatcher_limit{type="command"}') == 3, "the limit is 3")
    after = host.show(leader)
    assert (after["ActiveState"], after["MainPID"]) == ("active", before["MainPID"])


def test_kill_9_is_restarted_and_the_death_is_proven_from_within_the_sandbox(host: Host, database: Database) -> None:
    leader = host.leader()
    assert leader is not None
    number = enqueue(database, "command", {"program": "sleep", "args": ["2"]}, max_attempts=3)
    wait_for(database, number, "running")
    before = host.show(leader)
    killed = time.monotonic()
    host.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", leader)
    wait_until(lambda: host.leads(other(leader)), "the other replica leads")
    ended = wait_for(database, number, "succeeded", "failed", seconds=ORPHAN_AFTER_S)
    assert (ended["state"], ended["attempt"]) == ("succeeded", 2)
    # Not by waiting until the dead replica has been silent for long enough.
    assert time.monotonic() - killed < ORPHAN_AFTER_S / 2
    restarted = wait_until(lambda: up_again(host, leader, before), "systemd restarts it")
    assert int(restarted["NRestarts"]) == int(before["NRestarts"]) + 1


def test_a_hang_is_ended_by_the_watchdog_and_restarted(host: Host) -> None:
    leader = host.leader()
    assert leader is not None
    before = host.show(leader)
    host.run("systemctl", "kill", "--signal=STOP", "--kill-whom=main", leader)
    wait_until(lambda: host.leads(other(leader)), "the other replica leads")
    wait_until(lambda: up_again(host, leader, before), "systemd restarts it", seconds=40)
    assert "Watchdog timeout" in host.journal()


def test_a_graceful_stop_hands_over_and_loses_nothing(host: Host, database: Database) -> None:
    leader = host.leader()
    assert leader is not None
    number = enqueue(database, "command", {"program": "sleep", "args": ["3"]})
    wait_for(database, number, "running")
    began = time.monotonic()
    host.run("systemctl", "stop", "--no-block", leader)
    wait_until(lambda: host.leads(other(leader)), "the other replica leads")
    # The old leader still runs its job, and the new one claims.
    assert job(database, number)["state"] == "running"
    wait_for(database, enqueue(database, "command", {"program": "sleep", "args": ["0"]}), "succeeded")
    ended = wait_for(database, number, "succeeded", "failed")
    assert (ended["state"], ended["attempt"], ended["failures"]) == ("succeeded", 1, 0)
    wait_until(lambda: host.show(leader)["ActiveState"] == "inactive", "it ends", seconds=STOP_TIMEOUT_S)
    assert time.monotonic() - began < STOP_TIMEOUT_S
    stopped = host.show(leader)
    assert (stopped["Result"], stopped["ExecMainStatus"]) == ("success", "0")


def up_again(host: Host, unit: str, before: dict[str, str]) -> dict[str, str] | None:
    now = host.show(unit)
    is_new = now["MainPID"] not in ("0", before["MainPID"])
    return now if now["ActiveState"] == "active" and is_new else None


@pytest.fixture
def api(host: Host) -> Iterator[Host]:
    """The socket of the HTTP API is there, its service is not running."""
    host.run("systemctl", "enable", "--now", "dispatcher-api.socket")
    try:
        yield host
    finally:
        host.run("systemctl", "disable", "--now", "dispatcher-api.socket", f"{API}.service")


# With and without a connection that is kept, until the file is there; prints how many answers, then what went wrong.
ASK = """
import http.client, pathlib, sys, threading
stop, path, token = sys.argv[1:]
answers, errors = [], []
def ask(keep):
    own = http.client.HTTPConnection("127.0.0.1", 8080, timeout=30)
    while not pathlib.Path(stop).exists():
        try:
            own.request("GET", path, headers={"Authorization": "Bearer " + token})
            answer = own.getresponse()
            answer.read()
            (answers if answer.status == 200 else errors).append(answer.status)
        except Exception as exc:
            errors.append(repr(exc))
            own.close()
        if not keep:
            own.close()
threads = [threading.Thread(target=ask, args=(keep,)) for keep in (True, True, False, False)]
for each in threads: each.start()
for each in threads: each.join()
print(len(answers), *errors)
"""

# One job; prints the answer's status.
POST = """
import json, sys, urllib.request as u
headers = {"Authorization": "Bearer " + sys.argv[1], "Content-Type": "application/json"}
job = json.dumps({"type": "command", "payload": {"program": "sleep", "args": ["0"]}}).encode()
with u.urlopen(u.Request("http://127.0.0.1:8080/jobs", job, headers), timeout=30) as answer:
    print(answer.status, json.load(answer)["id"])
"""


def token(host_dsn: str) -> str:
    with Client(host_dsn) as client:
        return client.create_token("test")[1]


def test_the_target_does_not_start_the_api(host: Host) -> None:
    host.run("systemctl", "restart", "dispatcher.target")
    states = {unit: host.show(unit)["ActiveState"] for unit in (f"{API}.socket", f"{API}.service")}
    assert set(states.values()) == {"inactive"}, states


def test_the_first_request_starts_the_api(api: Host, host_dsn: str, database: Database) -> None:
    assert api.show(f"{API}.service")["ActiveState"] == "inactive"
    status, number = api.run(f"{installation.HOME}/bin/python", "-c", POST, token(host_dsn)).split()
    assert status == "202"
    assert wait_for(database, int(number), "succeeded", "failed")["state"] == "succeeded"
    shown = api.show(f"{API}.service")
    assert (shown["ActiveState"], shown["StatusText"]) == ("active", "serves on 127.0.0.1:8080")
    assert api.ask(API, "/readyz")[0] == 200


def test_a_restart_of_the_api_refuses_nobody(api: Host, host_dsn: str) -> None:
    command = (f"{installation.HOME}/bin/python", "-c", ASK, "/run/enough", "/types", token(host_dsn))
    with ThreadPoolExecutor() as threads:
        asking = threads.submit(api.run, *command)
        try:
            wait_until(lambda: api.show(f"{API}.service")["ActiveState"] == "active", "requests start it")
            for _ in range(3):
                before = api.show(f"{API}.service")
                api.run("systemctl", "restart", f"{API}.service")
                assert up_again(api, f"{API}.service", before)
                time.sleep(0.5)  # some requests for each
        finally:
            api.run("touch", "/run/enough")
        count, *errors = asking.result().split(maxsplit=1)
    assert not errors
    assert int(count) > 100


def test_a_stop_of_the_api_finishes_what_is_in_flight(api: Host, host_dsn: str, database: Database) -> None:
    assert api.ask(API, "/healthz")[0] == 200
    with ThreadPoolExecutor() as threads:
        with psycopg.connect(host_dsn) as holder:
            holder.execute("lock table dispatcher.job")
            request = threads.submit(api.run, f"{installation.HOME}/bin/python", "-c", POST, token(host_dsn))
            waiting = (
                "select 1 from pg_stat_activity where application_name = 'dispatcher api' and wait_event_type = 'Lock'"
            )
            wait_until(lambda: database.execute(waiting).fetchone(), "the request waits")
            api.run("systemctl", "stop", "--no-block", f"{API}.service")
            wait_until(lambda: api.show(f"{API}.service")["ActiveState"] == "deactivating", "it stops")
            assert not request.done()
        assert request.result().startswith("202 ")
    wait_until(lambda: api.show(f"{API}.service")["ActiveState"] == "inactive", "it ends")
    stopped = api.show(f"{API}.service")
    assert (stopped["Result"], stopped["ExecMainStatus"]) == ("success", "0")
    assert api.ask(API, "/healthz")[0] == 200  # which starts it again


def test_a_hung_api_is_ended_by_the_watchdog_and_what_waited_is_answered(api: Host) -> None:
    assert api.ask(API, "/healthz")[0] == 200
    before = api.show(f"{API}.service")
    api.run("systemctl", "kill", "--signal=STOP", "--kill-whom=main", f"{API}.service")
    program = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8080/healthz', timeout=40).status)"
    assert api.run(f"{installation.HOME}/bin/python", "-c", program).strip() == "200"
    assert up_again(api, f"{API}.service", before)
    assert f"{API}.service: Watchdog timeout" in api.journal()


def test_an_api_with_wrong_settings_needs_no_more_than_right_ones(api: Host) -> None:
    own = "/etc/dispatcher/api.env"
    append(api.machine, own, "DISPATCHER_DSN='no such thing'\n")
    with ThreadPoolExecutor() as threads:
        try:
            answer = threads.submit(api.ask, API, "/healthz")
            wait_until(lambda: int(api.show(f"{API}.service")["NRestarts"]) >= 2, "systemd tries again")
        finally:
            api.run("rm", own)
        with contextlib.suppress(AssertionError):  # it waits for 5 s only
            answer.result()
    wait_until(lambda: api.show(f"{API}.service")["ActiveState"] == "active", "it starts")
    assert api.ask(API, "/healthz")[0] == 200
