"""The process of `dispatcher api`: how it begins, how it ends, and what it serves on."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest

from dispatcher import Client
from tests.db.running import publish
from tests.system.api_process import ApiProcess, caller
from tests.system.replicas import PATIENCE_S, until

pytestmark = pytest.mark.system

JOB = {"type": "quick", "payload": {}}
AT_ONCE_S = (
    8.0  # below all that it could wait for: a statement of 10 s, a heartbeat of 15 s, a grace of 20 s, a poll of 60 s
)


@pytest.fixture(autouse=True)
def known(conn: psycopg.Connection) -> None:
    """The type quick is known, and nobody runs it."""
    publish(conn)


@pytest.fixture
def api(dsn: str, tmp_path: Path) -> Iterator[ApiProcess]:
    with ApiProcess(dsn, tmp_path) as process:
        yield process.until_serves()


@pytest.fixture
def call(api: ApiProcess) -> Iterator[httpx.Client]:
    with caller(api.url, api.token()) as client:
        yield client


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as executor:
        yield executor


@contextmanager
def held(
    dsn: str, conn: psycopg.Connection, threads: ThreadPoolExecutor, call: httpx.Client
) -> Iterator[Future[httpx.Response]]:
    """A request in flight, which cannot end before the block does."""
    with psycopg.connect(dsn) as holder:
        holder.execute("lock table dispatcher.job")
        request = threads.submit(call.post, "/jobs", json=JOB)
        until(lambda: conn.execute("select 1 from pg_locks where not granted").fetchone(), "the request waits")
        yield request


def test_sigterm_finishes_what_is_in_flight(
    dsn: str, conn: psycopg.Connection, api: ApiProcess, call: httpx.Client, threads: ThreadPoolExecutor
) -> None:
    with held(dsn, conn, threads, call) as request:
        api.stop()
        until(lambda: api.said("told to stop"), "it stops")
        until(lambda: not connects(api.address), "nobody is taken any more")
        assert not request.done()
    answer = request.result()
    assert (answer.status_code, answer.headers["connection"]) == (202, "close")
    assert api.wait() == 0
    assert conn.execute("select count(*) from dispatcher.job").fetchone() == (1,)


def connects(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionError:
        return False
    return True


def test_a_request_that_outlasts_the_grace_holds_up_nothing(
    dsn: str, conn: psycopg.Connection, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    with ApiProcess(dsn, tmp_path, shutdown_grace="1s") as api, caller(api.until_serves().url, api.token()) as call:
        with held(dsn, conn, threads, call) as request:
            api.stop()
            assert api.wait(1 + AT_ONCE_S) == 0
        assert request.result().status_code == 503
        assert "Traceback" not in api.output


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_told_twice_it_ends_at_once(
    by: signal.Signals,
    dsn: str,
    conn: psycopg.Connection,
    api: ApiProcess,
    call: httpx.Client,
    threads: ThreadPoolExecutor,
) -> None:
    with held(dsn, conn, threads, call):
        api.stop(by=by)
        until(lambda: api.said("told to stop"), "it stops")
        api.stop(by=by)
        api.wait(AT_ONCE_S)
    assert "Traceback" not in api.output


def test_a_stream_and_a_long_poll_end_at_once(api: ApiProcess, call: httpx.Client, threads: ThreadPoolExecutor) -> None:
    job = call.post("/jobs", json=JOB).json()["id"]
    answered = threading.Event()
    begun = threads.submit(call.get, f"/jobs/{job}", params={"wait": "60s"})
    streams = threads.submit(read_stream, call, job, answered)
    assert answered.wait(PATIENCE_S)
    time.sleep(0.5)  # the poll was asked for before, and does not tell when it waits
    told = time.monotonic()
    api.stop()
    assert begun.result().json()["state"] == "pending"
    assert "event: state" in streams.result()
    assert api.wait() == 0
    assert time.monotonic() - told < AT_ONCE_S


def read_stream(call: httpx.Client, job: int, answered: threading.Event) -> str:
    with call.stream("GET", f"/jobs/{job}/events") as answer:
        answered.set()
        return "".join(answer.iter_text())


def test_a_request_on_its_way_is_answered_although_it_stops(api: ApiProcess, call: httpx.Client) -> None:
    """Over connections that were there before: one that is new, and one that has been used."""
    host, _, port = api.address.rpartition(":")
    with socket.create_connection((host, int(port))) as new:
        assert call.get("/healthz").status_code == 200
        api.stop()
        until(lambda: not connects(api.address), "nobody is taken any more")
        new.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        said = b"".join(iter(lambda: new.recv(4096), b""))
    assert said.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in said.lower()
    assert api.wait() == 0


def one_line(
    dsn: str, folder: Path, *, listening: socket.socket | None = None, prefix: tuple[str, ...] = (), **settings: str
) -> str:
    """What a process says that cannot begin."""
    with ApiProcess(dsn, folder, listening=listening, prefix=prefix, **settings) as process:
        assert process.wait() == 1
    [line] = process.output.splitlines()
    return line


def test_a_port_in_use_is_one_line(dsn: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        line = one_line(dsn, tmp_path, api_port=str(other.getsockname()[1]))
    assert line.endswith("Address already in use; set another port, or 0 for any free one")


def test_a_port_that_needs_a_right_is_one_line(dsn: str, tmp_path: Path) -> None:
    if Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text().strip() == "0":
        pytest.skip("on this host no port needs a right")
    without = ("setpriv", "--bounding-set=-net_bind_service") if os.geteuid() == 0 else ()
    assert one_line(dsn, tmp_path, prefix=without, api_port="1").endswith("Permission denied")


def test_a_host_that_is_not_here_is_one_line(dsn: str, tmp_path: Path) -> None:
    assert "cannot listen on api_host '192.0.2.1'" in one_line(dsn, tmp_path, api_host="192.0.2.1")


def test_what_is_no_listening_socket_is_one_line(dsn: str, tmp_path: Path) -> None:
    one, other = socket.socketpair()
    with one, other:
        assert "no listening socket" in one_line(dsn, tmp_path, listening=one)


def test_no_token_is_in_what_it_writes(dsn: str, tmp_path: Path) -> None:
    with ApiProcess(dsn, tmp_path, log_level="debug") as api:
        token = api.until_serves().token()
        unknown = token[:-4] + "AAAA"
        for one in (token, unknown, f"{token}{token}"):
            with caller(api.url, one) as call:
                for path in ("/types", "/nowhere", f"/jobs/1?token={one}", f"/{one}"):
                    call.get(path)
                call.post("/jobs", json=JOB | {"type": "x" * 1000})
                call.post("/jobs", content=b"{", headers={"Content-Type": "application/json"})
        host, _, port = api.address.rpartition(":")
        with socket.create_connection((host, int(port))) as raw:  # no HTTP, which uvicorn warns of
            raw.sendall(f"GET / HTTP/9\r\nAuthorization: Bearer {token}\r\nbad header\r\n\r\n".encode())
            raw.recv(4096)
        api.stop()
        assert api.wait() == 0
        assert api.said("serves")
        assert token[8:] not in api.output
        assert unknown[8:] not in api.output


def test_beyond_this_host_it_warns(dsn: str, tmp_path: Path) -> None:
    with ApiProcess(dsn, tmp_path, api_host="0.0.0.0") as api:
        api.until_serves()
        until(lambda: api.said("without TLS"), "it warns")
        api.stop()
        assert api.wait() == 0


def test_at_home_it_does_not_warn(api: ApiProcess) -> None:
    api.stop()
    assert api.wait() == 0
    assert not api.said("without TLS")


def test_an_inherited_socket_goes_before_the_settings(dsn: str, tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_server(("127.0.0.1", 0)) as other,
        ApiProcess(dsn, tmp_path, listening=listening, api_port=str(other.getsockname()[1])) as api,
    ):
        port = listening.getsockname()[1]
        answer = httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=PATIENCE_S)  # it waits in the socket
        assert answer.status_code == 200
        assert api.until_serves().address == f"127.0.0.1:{port}"
        api.stop()
        assert api.wait() == 0
        assert connects(f"127.0.0.1:{port}")  # which is still open


def test_an_inherited_unix_socket(dsn: str, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        for _ in range(2):  # the file stays for the next process
            with ApiProcess(dsn, tmp_path, listening=listening) as api:
                token = api.until_serves().token()
                with caller("http://api", token, transport=httpx.HTTPTransport(uds=str(path))) as call:
                    assert call.post("/jobs", json=JOB).status_code == 202
                assert api.address == str(path)
                api.stop()
                assert api.wait() == 0
                assert not api.said("without TLS")


def test_a_restart_on_an_inherited_socket_refuses_and_resets_nobody(
    dsn: str, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    """Neither clients that keep their connection nor those with one for each request."""
    over = threading.Event()
    rounds: list[int] = []

    def ask(url: str, token: str, *, keep: bool) -> int:
        limits = httpx.Limits(max_keepalive_connections=1 if keep else 0)
        with caller(url, token, limits=limits) as call:
            done = 0
            while not over.is_set():
                assert call.get("/types").status_code == 200
                done += 1
                rounds.append(done)
            return done

    def go_on() -> None:
        wanted = len(rounds) + 50
        until(lambda: len(rounds) >= wanted or any(one.done() for one in asking), "requests are answered")

    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening, Client(dsn) as client:
        url, token = f"http://127.0.0.1:{listening.getsockname()[1]}", client.create_token("test")[1]
        asking = [threads.submit(ask, url, token, keep=keep) for keep in (True, True, False, False)]
        for _ in range(4):
            with ApiProcess(dsn, tmp_path, listening=listening) as api:
                go_on()
                api.stop()
                assert api.wait() == 0
        over.set()
        with ApiProcess(dsn, tmp_path, listening=listening):
            assert all(one.result() for one in asking)


def test_systemd_hears_that_it_serves_lives_and_stops(
    dsn: str, conn: psycopg.Connection, tmp_path: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "400000")

        def heard(wanted: str) -> list[str]:
            while wanted not in (lines := systemd.recv(4096).decode().splitlines()):
                pass
            return lines

        with ApiProcess(dsn, tmp_path) as api:
            assert heard("READY=1")[1] == f"STATUS=serves on {api.until_serves().address}"
            heard("WATCHDOG=1")
            with caller(api.url, api.token()) as call, held(dsn, conn, threads, call):
                api.stop()
                heard("STOPPING=1")
                for _ in range(5):  # for longer than the watchdog would wait
                    heard("WATCHDOG=1")
            assert api.wait() == 0
