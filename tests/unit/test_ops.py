"""The HTTP end over real sockets."""

import gzip
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from dispatcher import ops
from dispatcher.errors import SettingsError
from dispatcher.ops import Ops

Get = Callable[..., tuple[int, dict[str, str], bytes]]


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("dispatcher_leader", "1 on the replica that leads.", registry=registry).set(1)
    Counter("dispatcher_db_errors", "Errors.", registry=registry).inc(3)
    return registry


@pytest.fixture
def failing() -> dict[str, str | None]:
    """What the checks answer; a test changes it."""
    return {"database": None, "loop": None}


@pytest.fixture
def served(registry: CollectorRegistry, failing: dict[str, str | None]) -> Iterator[Ops]:
    served = Ops("127.0.0.1", 0, registry, lambda: failing)
    served.start()
    yield served
    served.stop()


@pytest.fixture
def get(served: Ops) -> Get:
    def ask(path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=5)
        try:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, headers=names)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    return ask


def test_metrics_come_in_the_format_that_was_asked_for(get: Get) -> None:
    status, headers, body = get("/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    assert b"dispatcher_leader 1.0\n" in body
    assert b"dispatcher_db_errors_total 3.0\n" in body
    _, headers, body = get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    _, headers, body = get("/metrics", Accept_Encoding="gzip")
    assert headers["Content-Encoding"] == "gzip"
    assert b"dispatcher_leader 1.0\n" in gzip.decompress(body)
    _, _, body = get("/metrics?name[]=dispatcher_leader")
    assert b"dispatcher_leader 1.0\n" in body
    assert b"db_errors" not in body


def test_a_failing_check_is_named_and_health_stays_well(get: Get, failing: dict[str, str | None]) -> None:
    status, headers, body = get("/readyz")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(body) == {"status": "ready"}
    failing["database"] = "no session"
    status, _, body = get("/readyz")
    assert status == 503
    assert json.loads(body) == {"status": "unready", "failing": {"database": "no session"}}
    status, _, body = get("/healthz")
    assert (status, json.loads(body)) == (200, {"status": "ok"})


def test_other_paths_and_methods_are_refused(get: Get) -> None:
    assert get("/nothing")[0] == 404
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        status, headers, _ = get("/metrics", method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")
    status, headers, body = get("/")
    assert status == 200
    assert b"/metrics" in body


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/"])
def test_head_answers_as_get_without_a_body(path: str, get: Get) -> None:
    status, headers, body = get(path, "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 0


def test_a_check_that_raises_is_an_answer_not_a_silence(registry: CollectorRegistry) -> None:
    def broken() -> dict[str, str | None]:
        raise RuntimeError("a bug")

    served = Ops("127.0.0.1", 0, registry, broken)
    served.start()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=5)
        connection.request("GET", "/readyz")
        assert connection.getresponse().status == 500
        connection.close()
    finally:
        served.stop()


def silent_clients(served: Ops, count: int) -> list[socket.socket]:
    clients = []
    for _ in range(count):
        client = socket.create_connection(("127.0.0.1", served.port), timeout=5)
        client.sendall(b"GET /metrics HTTP/1.0\r\nX-Slow: ")
        clients.append(client)
    return clients


def is_cut_off(client: socket.socket) -> bool:
    with client:
        try:
            return client.recv(1) == b""
        except ConnectionResetError:  # it had not been accepted yet
            return True


def test_clients_that_never_finish_asking_keep_nobody_out(served: Ops, get: Get) -> None:
    clients = silent_clients(served, ops.CONNECTIONS * 2)
    try:
        assert get("/healthz")[0] == 200
        assert is_cut_off(clients[0])  # the oldest made room
    finally:
        for client in clients:
            client.close()


def test_a_client_that_drips_is_cut_off_in_the_end(served: Ops, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "LIFETIME_S", 0.3)
    [client] = silent_clients(served, 1)
    with client:
        # Each byte comes in time for a time-out that counts from the last one.
        client.settimeout(0.05)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                client.sendall(b"x")
                if client.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            pytest.fail("still connected after 20 s")


def test_stop_waits_for_no_client_and_frees_the_port(registry: CollectorRegistry) -> None:
    served = Ops("127.0.0.1", 0, registry, dict)
    served.start()
    port = served.port
    clients = silent_clients(served, 3)
    started = time.monotonic()
    served.stop()
    served.stop()
    assert time.monotonic() - started < 2
    assert [is_cut_off(client) for client in clients] == [True] * 3
    again = Ops("127.0.0.1", port, registry, dict)
    again.start()
    again.stop()


def test_a_port_in_use_is_one_line_that_says_what_to_change(served: Ops, registry: CollectorRegistry) -> None:
    with pytest.raises(SettingsError) as caught:
        Ops("127.0.0.1", served.port, registry, dict).start()
    assert f"metrics_port {served.port} is in use" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "x" * 300])
def test_a_host_that_is_not_ours_is_one_line_that_names_the_setting(host: str, registry: CollectorRegistry) -> None:
    with pytest.raises(SettingsError, match="metrics_host") as caught:
        Ops(host, 0, registry, dict).start()
    assert "\n" not in str(caught.value)


def test_ipv6_works(registry: CollectorRegistry) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    served = Ops("::1", 0, registry, dict)
    served.start()
    try:
        connection = http.client.HTTPConnection("::1", served.port, timeout=5)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        connection.close()
    finally:
        served.stop()
