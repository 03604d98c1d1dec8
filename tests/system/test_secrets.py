"""What is secret shows nowhere: not in logs, metrics or errors, nor in what others on the machine or the server see."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg import conninfo

from dispatcher.embedded import EmbeddedPostgres
from tests import servers
from tests.system.api_process import ApiProcess, caller
from tests.system.replicas import CALM, PATIENCE_S, ROOT, Fleet, until

pytestmark = pytest.mark.system

# With a sign that a URL must escape, and one that a connection string must.
PASSWORD = "s3crt'%/w0rd"
PARTS = ("s3crt", "w0rd")
SECRET = "v3ry-hidden"
KEY = "idem-k3y"
# The program's own environment, and that of the daemon, which is its parent's parent.
LOOK = "env; up=$(cut -d' ' -f4 /proc/$PPID/stat); tr '\\0' '\\n' < /proc/$up/environ"
COMMANDS = json.dumps({"look": ["/bin/sh", "-c", LOOK]})


@pytest.fixture
def dsn(postgres: EmbeddedPostgres, postgres_dsn: str) -> str:
    """A database whose role has a password that nobody may see, by a URL."""
    with psycopg.connect(postgres.dsn, autocommit=True) as admin:
        admin.execute(f"alter role {servers.ROLE} password '{PASSWORD.replace(chr(39), chr(39) * 2)}'".encode())
    given = conninfo.conninfo_to_dict(postgres_dsn)
    return (
        f"postgresql://{given['user']}:s3crt%27%25%2Fw0rd@{given['host']}:{given['port']}/{given['dbname']}"
        "?application_name=shown"
    )


@pytest.fixture
def fleet(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    monkeypatch.setenv("MY_SECRET", SECRET)
    with Fleet(dsn, tmp_path) as fleet:
        yield fleet


def shown(text: str) -> list[str]:
    """The secrets in a text."""
    return [part for part in (*PARTS, SECRET, KEY, "djt_") if part in text]


def seen_by_others(pid: int) -> str:
    """What /proc shows of a process and all below it: arguments to everybody, the environment to the same user."""
    process = psutil.Process(pid)
    seen = []
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a program's supervisor may just end
            seen += [Path(f"/proc/{each.pid}/{name}").read_text(errors="replace") for name in ("cmdline", "environ")]
    return "\n".join(seen)


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_replica_and_its_children_show_no_secret(fleet: Fleet, log_format: str) -> None:
    leader = fleet.start_leader(
        **CALM,
        executors="tests.system.pool_jobs",
        log_level="debug",
        log_format=log_format,
        processes="1",
        commands=COMMANDS,
    )
    look = fleet.enqueue("command", program="look")
    fleet.until_all(look)
    (result,) = fleet.query("select result::text from dispatcher.job where id = %s", look[0])
    assert len(result[0]) > 100
    assert shown(result[0]) == []
    seen = seen_by_others(leader.pid)
    assert "dispatcher worker" in seen
    assert shown(seen) == []
    for path in ("/metrics", "/healthz", "/readyz"):
        assert shown(get(leader.metrics_port, path)) == []
    sessions = fleet.query("select application_name || ' ' || query from pg_stat_activity")
    assert shown(str(sessions)) == []
    leader.send(signal.SIGTERM)
    assert leader.wait() == 0
    assert shown(leader.log_file.read_text()) == []


def test_replica_that_loses_its_database_tells_no_password(fleet: Fleet, postgres: EmbeddedPostgres) -> None:
    leader = fleet.start_leader(log_level="debug")
    with psycopg.connect(postgres.dsn, autocommit=True) as admin:
        admin.execute(f"alter role {servers.ROLE} password 'another'".encode())
        admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", [servers.ROLE])
    until(lambda: leader.said("password authentication failed"), "it has tried to log in")
    assert shown(leader.log_file.read_text()) == []


def test_api_shows_no_token_and_no_key(fleet: Fleet, dsn: str, tmp_path: Path) -> None:
    fleet.start_leader(**CALM)
    with ApiProcess(dsn, tmp_path, log_level="debug").until_serves() as api:
        token = api.token()
        with caller(api.url, token) as http:
            for type, status in (("quick", 202), ("nothing", 422)):
                answer = http.post("/jobs", json={"type": type}, headers={"Idempotency-Key": f"{KEY}-{type}"})
                assert answer.status_code == status, answer.text
            refused = http.get("/jobs", headers={"Authorization": f"Bearer {token[:-4]}AAAA"})
            assert refused.status_code == 401
            assert shown(refused.text) == []
        statements = fleet.query("select query from pg_stat_activity where application_name like 'dispatcher api%'")
        assert shown(str(statements)) == []
        assert shown(seen_by_others(api.process.pid)) == []
        assert shown(api.output) == []


@pytest.mark.parametrize("form", ["separate", "joined"])
def test_password_in_a_flag_is_gone_from_the_process_list_once_it_runs(fleet: Fleet, dsn: str, form: str) -> None:
    flag = ["--dsn", dsn] if form == "separate" else [f"--dsn={dsn}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dispatcher", "run", *flag, "--metrics-port", "0", "--types", "fan_out"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        query = "select count(*) from dispatcher.replica where pid = %s and incarnation > 0"
        until(lambda: fleet.value(query, process.pid), "it runs", PATIENCE_S)
        line = Path(f"/proc/{process.pid}/cmdline").read_text()
        assert shown(line) == []
        assert "--dsn" in line
        assert "--metrics-port" in line
    finally:
        process.kill()
        process.wait(10)


@pytest.mark.parametrize("arguments", [["config"], ["config", "--json"], ["job", "list"], ["migrate", "--check"]])
@pytest.mark.parametrize("given", ["environment", "database_url", "file", "pgpassword", "key=value", "wrong"])
def test_commands_show_no_password(dsn: str, tmp_path: Path, given: str, arguments: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "DISPATCHER_"))}
    match given:
        case "environment":
            environment["DISPATCHER_DSN"] = dsn
        case "database_url":
            environment["DATABASE_URL"] = dsn
        case "file":
            environment["DISPATCHER_CONFIG"] = str(tmp_path / "settings.toml")
            (tmp_path / "settings.toml").write_text(f'dsn = "{dsn}"\n')
            (tmp_path / "settings.toml").chmod(0o644)
        case "pgpassword":
            environment |= {"DISPATCHER_DSN": conninfo.make_conninfo(dsn, password=None), "PGPASSWORD": PASSWORD}
        case "key=value":
            environment["DISPATCHER_DSN"] = conninfo.make_conninfo(dsn)
        case "wrong":
            environment["DISPATCHER_DSN"] = conninfo.make_conninfo(dsn, password=PASSWORD + "w0rd")
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore", "-m", "dispatcher", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0 or given == "wrong", done.stderr
    if arguments[0] == "config":
        assert ("everybody can read" in done.stderr) is (given == "file")
    assert shown(done.stdout + done.stderr) == []
