"""The gate for requests to other hosts: what may be asked, where a name may lead, and that nothing hangs."""

import gzip
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from dispatcher_executors.outside import TooLarge, Unreachable, ask
from dispatcher_executors.outside_rules import allow, is_inside, is_public, parse, read_rules

from dispatcher.context import Context, Interrupted
from dispatcher.executor import Fail
from dispatcher.job import CancelReason, Job
from tests.timing import quickest
from tests.web import Asked, Reply, Site, certificate, serve

HOSTS = "DISPATCHER_HTTP_HOSTS"


def context(timeout_s: float | None = None) -> Context:
    job = Job(7, "http_request", None, {}, 0, 1, 0, datetime.now(UTC))
    return Context(job, timeout_s=timeout_s, runtime=None)  # type: ignore[arg-type]


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return lambda *entries: monkeypatch.setenv(HOSTS, ",".join(entries))


@pytest.fixture
def site(hosts: Callable[..., None]) -> Iterator[Site]:
    with serve(lambda asked: Reply(body=b"hello")) as site:
        hosts(site.url)
        yield site


def leads_to(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """DNS as the owner of a name would have it: one answer after the other. Returns the names asked for."""
    real, asked, left = socket.getaddrinfo, [], list(answers)

    def answer(host: str, port: int, **options: Any) -> Any:
        asked.append(host)
        addresses = left.pop(0) if len(left) > 1 else left[0]
        return [found for address in addresses for found in real(address, port, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return asked


# What may be asked


def test_nothing_may_be_asked_until_the_setting_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HOSTS, raising=False)
    with (
        pytest.raises(Fail, match="requests to other hosts are off: set DISPATCHER_HTTP_HOSTS"),
        ask(context(), "GET", "https://example.com/"),
    ):
        pass


@pytest.mark.parametrize(
    ("entries", "url"),
    [
        ("api.example.com", "https://api.example.com/a?b"),
        ("api.example.com", "https://API.Example.COM:443/"),
        ("api.example.com:8443", "https://api.example.com:8443/"),
        ("http://api.example.com", "http://api.example.com/"),
        ("*.example.org", "https://a.b.example.org/"),
        ("*", "https://anything.example/"),
        ('["one.example", "two.example"]', "https://two.example/"),
        ("http://10.1.2.3:8080", "http://10.1.2.3:8080/x"),
        ("http://[::1]:80", "http://[::1]/"),
        ("http://10.1.2.3", "http://[::ffff:10.1.2.3]/"),
        ("internal:http://svc.local:8080", "http://svc.local:8080/"),
        ("bücher.example", "https://xn--bcher-kva.example/"),
    ],
)
def test_what_is_on_the_list_may_be_asked(hosts: Callable[..., None], entries: str, url: str) -> None:
    hosts(entries)
    assert allow(url).url


@pytest.mark.parametrize(
    ("entries", "url"),
    [
        ("api.example.com", "http://api.example.com/"),
        ("api.example.com", "https://api.example.com:8443/"),
        ("api.example.com", "https://api.example.com.evil.example/"),
        ("api.example.com", "https://evil.example/api.example.com"),
        ("api.example.com", "https://evil.example#@api.example.com/"),
        ("api.example.com", "https://evil.example\\@api.example.com/"),
        ("api.example.com", "https://xapi.example.com/"),
        ("*.example.org", "https://example.org/"),
        ("*.example.org", "https://.example.org/"),
        ("*.example.org", "https://evilexample.org/"),
        ("*", "https://10.0.0.1/"),
        ("*", "https://93.184.216.34/"),
        ("*", "http://anything.example/"),
        ("*.1", "https://127.0.0.1/"),
        ("http://10.1.2.3:8080", "http://10.1.2.3:8081/"),
        ("api.example.com", "https://user:pass@api.example.com/"),
        ("api.example.com", "ftp://api.example.com/"),
        ("api.example.com", "file:///etc/passwd"),
        ("api.example.com", "//api.example.com/"),
        ("api.example.com", "https:///x"),
        ("api.example.com", "https://api.example.com:99999/"),
        ("api.example.com", "https://api.exa\nmple.com/"),
        ("api.example.com", ""),
    ],
)
def test_what_is_not_on_the_list_is_refused(hosts: Callable[..., None], entries: str, url: str) -> None:
    hosts(entries)
    with pytest.raises(Fail) as caught:
        allow(url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "entries", ["a b", "ftp://x", "x/path", "u@x", "x:y", "a*.example", "*.*.example", '["a"', '{"a": 1}', "[1]", "::1"]
)
def test_broken_list_is_named(hosts: Callable[..., None], entries: str) -> None:
    hosts(entries)
    with pytest.raises(Fail, match=HOSTS):
        read_rules()


def test_password_of_a_url_is_in_no_error() -> None:
    with pytest.raises(Fail) as caught:
        parse("ftp://me:hunter2@example.com/?token=hunter2")
    assert "hunter2" not in str(caught.value)


# Where a name may lead

INSIDE = ["127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "::1", "fd00::1"]
NOWHERE = [
    *("169.254.169.254", "0.0.0.0", "0.1.2.3", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.0.170"),
    *("::", "fe80::1", "ff02::1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1"),
    *("2001:0:4136:e378:8000:63bf:3fff:fdd2", "::169.254.169.254", "64:ff9b:1::a00:1", "fec0::1", "2001:db8::1"),
]


@pytest.mark.parametrize("text", [*INSIDE, *NOWHERE, "::ffff:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::10.0.0.1"])
def test_no_address_inside_is_public_in_whatever_disguise(text: str) -> None:
    assert not is_public(ip_address(text))


@pytest.mark.parametrize("text", ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_hosts_of_the_internet_are_public(text: str) -> None:
    assert is_public(ip_address(text))
    assert not is_inside(ip_address(text))


@pytest.mark.parametrize("text", INSIDE)
def test_internal_names_may_lead_inside(text: str) -> None:
    assert is_inside(ip_address(text))


@pytest.mark.parametrize("text", ["fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16"])
def test_no_name_leads_to_where_clouds_hand_out_credentials(text: str) -> None:
    assert not is_public(ip_address(text))
    assert not is_inside(ip_address(text))


# Private by the registry, and harmless.
HARMLESS = {"2001:db8::1", "64:ff9b:1::a00:1", "0.1.2.3"}


@pytest.mark.parametrize("text", [text for text in NOWHERE if text not in HARMLESS])
def test_internal_names_may_not_lead_to_the_cloud_s_credentials_or_nowhere(text: str) -> None:
    assert not is_inside(ip_address(text))


def test_name_that_leads_inside_is_refused_before_anything_is_sent(hosts: Callable[..., None], site: Site) -> None:
    hosts(f"http://localhost:{site.port}")
    with (
        pytest.raises(Fail, match="leads to an address that is not public") as caught,
        ask(context(), "GET", f"http://localhost:{site.port}/"),
    ):
        pass
    assert "127.0.0.1" not in str(caught.value)
    assert site.asked == []


def test_one_inner_address_among_public_ones_is_refused(
    hosts: Callable[..., None], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts(f"http://rebind.example:{site.port}")
    leads_to(monkeypatch, ["8.8.8.8", "127.0.0.1"])
    with pytest.raises(Fail, match="not public"), ask(context(), "GET", f"http://rebind.example:{site.port}/"):
        pass
    assert site.asked == []


def test_name_that_changes_its_address_after_the_check_gains_nothing(
    hosts: Callable[..., None], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts(f"internal:http://rebind.example:{site.port}")
    asked = leads_to(monkeypatch, ["127.0.0.1"], ["169.254.169.254"])
    with ask(context(), "GET", f"http://rebind.example:{site.port}/") as answer:
        assert answer.read(100) == b"hello"
    assert asked == ["rebind.example"]  # the second answer is never asked for
    assert site.asked[0].headers["host"] == f"rebind.example:{site.port}"


def test_number_that_means_loopback_is_refused(hosts: Callable[..., None], site: Site) -> None:
    hosts(f"http://*:{site.port}")
    for host in ("2130706433", "127.1", "0x7f000001", "0", "localhost", "[::ffff:127.0.0.1]"):
        with pytest.raises((Fail, Unreachable)), ask(context(), "GET", f"http://{host}:{site.port}/"):
            pass
    assert site.asked == []


def test_certificate_is_checked_by_name_though_the_address_was_resolved_before(
    hosts: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, tls = certificate(tmp_path, "shop.example")
    names: list[str | None] = []
    tls.sni_callback = lambda _sock, name, _ctx: names.append(name)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    leads_to(monkeypatch, ["127.0.0.1"])
    with serve(lambda asked: Reply(body=b"safe"), tls=tls) as site:
        hosts(f"internal:shop.example:{site.port}", f"internal:other.example:{site.port}")
        with ask(context(), "GET", f"https://shop.example:{site.port}/") as answer:
            assert answer.read(10) == b"safe"
        with (
            pytest.raises(Unreachable, match="its certificate does not hold: Hostname mismatch"),
            ask(context(), "GET", f"https://other.example:{site.port}/"),
        ):
            pass
        monkeypatch.delenv("SSL_CERT_FILE")
        with (
            pytest.raises(Unreachable, match="its certificate does not hold"),
            ask(context(), "GET", f"https://shop.example:{site.port}/"),
        ):
            pass
    assert names == ["shop.example", "other.example", "shop.example"]
    assert len(site.asked) == 1


def test_proxies_of_the_environment_are_not_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with ask(context(), "GET", site.url) as answer:
        assert answer.read(10) == b"hello"


def test_address_written_as_ipv6_is_the_same_host(hosts: Callable[..., None], site: Site) -> None:
    with ask(context(), "GET", f"http://[::ffff:127.0.0.1]:{site.port}/") as answer:
        assert answer.read(10) == b"hello"
    assert site.asked[0].headers["host"] == f"[::ffff:127.0.0.1]:{site.port}"


def test_header_beyond_ascii_is_sent_in_utf_8(site: Site) -> None:
    with ask(context(), "GET", site.url, headers={"X-Name": "né"}) as answer:
        assert answer.read(10) == b"hello"
    assert site.asked[0].headers["x-name"].encode("latin-1") == "né".encode()


# Redirects


def test_redirect_is_an_answer_unless_asked_for(hosts: Callable[..., None]) -> None:
    with serve(lambda asked: Reply(302, headers=(("location", "/there"),))) as site:
        hosts(site.url)
        with ask(context(), "GET", site.url) as answer:
            assert (answer.status, answer.headers["location"]) == (302, "/there")
        with pytest.raises(Fail, match="more than 5 redirects"), ask(context(), "GET", site.url, redirects=5):
            pass
    assert len(site.asked) == 1 + 6


@pytest.mark.parametrize(
    "location",
    ["http://169.254.169.254/latest/meta-data/", "http://127.0.0.1:1/", "file:///etc/passwd", "//u:p@x/", "http://["],
)
def test_redirect_inside_is_refused(hosts: Callable[..., None], location: str) -> None:
    with serve(lambda asked: Reply(302, headers=(("location", location),))) as site:
        hosts(site.url)
        with pytest.raises(Fail, match=r"^127.0.0.1:\d+ redirects"), ask(context(), "GET", site.url, redirects=5):
            pass


def test_another_origin_gets_no_credentials(hosts: Callable[..., None], site: Site) -> None:
    sent = {"Authorization": "Bearer s3cret", "Cookie": "a=b", "X-Api-Key": "s3cret", "Accept": "text/plain"}
    with serve(lambda asked: Reply(302, headers=(("location", f"{site.url}/next"),))) as first:
        hosts(site.url, first.url)
        with ask(context(), "POST", first.url, headers=sent, body=b"s3cret", redirects=1) as answer:
            assert answer.url == f"{site.url}/next"
    assert "s3cret" in str(first.asked[0].headers)
    got = site.asked[0]
    assert (got.method, got.body, got.headers["accept"]) == ("GET", b"", "text/plain")
    assert "s3cret" not in str(got.headers)
    assert got.headers["cookie"] is None


@pytest.mark.parametrize("status", [307, 308])
def test_another_origin_gets_no_body(hosts: Callable[..., None], site: Site, status: int) -> None:
    with serve(lambda asked: Reply(status, headers=(("location", site.url),))) as first:
        hosts(site.url, first.url)
        with (
            pytest.raises(Fail, match="must not get what was sent"),
            ask(context(), "PUT", first.url, body=b"s3cret", redirects=5),
        ):
            pass
    assert site.asked == []


def test_redirect_on_the_same_origin_keeps_method_headers_and_body(hosts: Callable[..., None]) -> None:
    def answer(asked: Asked) -> Reply:
        return Reply(body=b"done") if asked.path == "/b" else Reply(307, headers=(("location", "/b"),))

    with serve(answer) as site:
        hosts(site.url)
        with ask(context(), "PUT", f"{site.url}/a", headers={"X-Key": "k"}, body=b"data", redirects=1) as got:
            assert got.read(10) == b"done"
    assert [(a.method, a.body, a.headers["x-key"]) for a in site.asked] == [("PUT", b"data", "k")] * 2


def test_redirect_to_http_is_refused(
    hosts: Callable[..., None], site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, tls = certificate(tmp_path, "localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    with serve(lambda asked: Reply(302, headers=(("location", site.url),)), tls=tls) as secure:
        hosts(site.url, f"internal:localhost:{secure.port}")
        with (
            pytest.raises(Fail, match="from https to http"),
            ask(context(), "GET", f"https://localhost:{secure.port}", redirects=5),
        ):
            pass
    assert site.asked == []


# Nothing hangs

SOON_S = 20.0  # on a busy machine; whatever does not end by itself takes 50 s, or for ever


def canceled(ctx: Context, url: str, when: threading.Event) -> float:
    """Asks, cancels once `when` is set, and returns the seconds from then to the end."""
    at: list[float] = []

    def cancel() -> None:
        when.wait()
        at.append(time.monotonic())
        ctx.cancel(CancelReason.REQUESTED)

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(Interrupted), ask(ctx, "GET", url, timeout_s=50) as answer:
        answer.read(1 << 30)
    thread.join()
    return time.monotonic() - at[0]


def test_cancel_ends_a_wait_for_an_answer_at_once(hosts: Callable[..., None]) -> None:
    over = threading.Event()
    with serve(lambda asked: Reply(status=200 + over.wait(50))) as site:
        hosts(site.url)
        assert canceled(context(), site.url, site.arrived) < SOON_S
        over.set()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_cancel_ends_a_wait_for_the_body_or_for_tls_at_once(hosts: Callable[..., None], scheme: str) -> None:
    """The server accepts, says the beginning of an answer (to https: nothing) and no more."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        waits = threading.Event()
        kept: list[socket.socket] = []

        def accept() -> None:
            client, _ = server.accept()
            kept.append(client)
            client.recv(10_000)
            if scheme == "http":
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\nthe beginning")
            waits.set()

        threading.Thread(target=accept, daemon=True).start()
        url = f"{scheme}://127.0.0.1:{server.getsockname()[1]}"
        hosts(url)
        assert canceled(context(), url, waits) < SOON_S
        kept[0].close()


def test_cancel_ends_a_connection_that_does_not_come_about_at_once(hosts: Callable[..., None]) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        crowd = []
        try:
            for _ in range(4):  # more than the queue takes: from then on the kernel answers nobody
                client = socket.socket()
                client.setblocking(False)
                client.connect_ex(server.getsockname())
                crowd.append(client)
            url = f"http://127.0.0.1:{server.getsockname()[1]}"
            hosts(url)
            begun = threading.Event()
            threading.Timer(0.3, begun.set).start()  # nothing tells from outside that a connection is under way
            assert canceled(context(), url, begun) < SOON_S
            with pytest.raises(Unreachable, match="no whole answer"), ask(context(), "GET", url, timeout_s=0.3):
                pass
        finally:
            for client in crowd:
                client.close()


def test_cancel_ends_a_wait_for_dns_at_once(hosts: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    asked, over = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> Any:
        asked.set()
        over.wait(50)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    hosts("slow.example")
    assert canceled(context(), "https://slow.example/", asked) < SOON_S
    over.set()


def test_job_canceled_before_sends_nothing(site: Site) -> None:
    ctx = context()
    ctx.cancel(CancelReason.REQUESTED)
    with pytest.raises(Interrupted), ask(ctx, "GET", site.url):
        pass
    assert site.asked == []


def test_server_that_drips_does_not_outlast_the_deadline(hosts: Callable[..., None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            client, _ = server.accept()
            with client:
                client.recv(10_000)
                try:
                    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                    while True:
                        client.sendall(b".")
                        time.sleep(0.02)  # what a server of this kind does
                except OSError:
                    pass

        threading.Thread(target=drip, daemon=True).start()
        hosts(url := f"http://127.0.0.1:{server.getsockname()[1]}")
        begun = time.monotonic()
        with pytest.raises(Unreachable, match="the time is over"), ask(context(), "GET", url, timeout_s=0.4) as answer:
            answer.read(1 << 20)
        assert 0.3 < time.monotonic() - begun < SOON_S


def test_job_s_own_deadline_ends_a_request_a_moment_before(hosts: Callable[..., None]) -> None:
    over = threading.Event()
    with serve(lambda asked: Reply(status=200 + over.wait(50))) as site:
        hosts(site.url)

        def took_s() -> float:
            begun = time.monotonic()
            with pytest.raises(Unreachable, match="the time is over"), ask(context(1.3), "GET", site.url):
                pass
            return time.monotonic() - begun

        assert quickest(took_s, within_s=1.3) < 1.3
        over.set()


def test_nobody_there_is_another_try(hosts: Callable[..., None]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # held, so that nobody else is given it
        hosts(url := f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(Unreachable, match="Connection refused"), ask(context(), "GET", url):
            pass


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"])
def test_answer_that_is_none_or_breaks_off_is_another_try(hosts: Callable[..., None], said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            client, _ = server.accept()
            with client:
                client.recv(10_000)
                client.sendall(said)

        threading.Thread(target=accept, daemon=True).start()
        hosts(url := f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(Unreachable) as caught, ask(context(), "GET", url) as answer:
            answer.read(100)
        assert "OpenSSH" not in str(caught.value)


# Bounds


def test_body_is_bounded(site: Site) -> None:
    with ask(context(), "GET", site.url) as answer:
        assert answer.read(5) == b"hello"
    with pytest.raises(TooLarge, match="more than 4 bytes"), ask(context(), "GET", site.url) as answer:
        answer.read(4)
    with ask(context(), "GET", site.url) as answer:
        assert answer.start(2) == b"he"


def test_bomb_is_not_unpacked(hosts: Callable[..., None]) -> None:
    bomb = gzip.compress(bytes(200 << 20), 9)
    with serve(lambda asked: Reply(body=bomb, headers=(("content-encoding", "gzip"),))) as site:
        hosts(site.url)
        with ask(context(), "GET", site.url) as answer:
            assert max(map(len, answer.chunks())) <= 65536
        with pytest.raises(TooLarge), ask(context(), "GET", site.url) as answer:
            answer.read(1_000_000)


@pytest.mark.parametrize(("kind", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)])
def test_packed_body_is_unpacked_whole(hosts: Callable[..., None], kind: str, pack: Callable[[bytes], bytes]) -> None:
    text = b"0123456789abcdef" * 40_000
    cut = pack(text)[:-9]
    replies = {"/": Reply(body=pack(text), headers=(("content-encoding", kind),))}
    replies["/cut"] = Reply(body=cut, headers=(("content-encoding", kind),))
    with serve(lambda asked: replies[asked.path]) as site:
        hosts(site.url)
        with ask(context(), "GET", site.url) as answer:
            assert answer.read(1 << 20) == text
        if kind != "identity":
            with pytest.raises(Unreachable, match="cut short"), ask(context(), "GET", f"{site.url}/cut") as answer:
                answer.read(1 << 20)


def test_packed_body_of_several_parts_is_not_cut_after_the_first(hosts: Callable[..., None]) -> None:
    parts = gzip.compress(b"one ") + gzip.compress(b"x" * 200_000) + gzip.compress(b" three") + bytes(100)
    with serve(lambda asked: Reply(body=parts, headers=(("content-encoding", "gzip"),))) as site:
        hosts(site.url)
        with ask(context(), "GET", site.url) as answer:
            assert answer.read(1 << 20) == b"one " + b"x" * 200_000 + b" three"


def test_endless_headers_are_not_read(hosts: Callable[..., None]) -> None:
    many = tuple((f"x-{n}", "v" * 1000) for n in range(200))
    with serve(lambda asked: Reply(headers=many)) as site:
        hosts(site.url)
        with pytest.raises(Unreachable, match="not HTTP"), ask(context(), "GET", site.url):
            pass


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("Host", "x"), ("content-length", "1"), ("Transfer-Encoding", "chunked"), ("Proxy-Authorization", "s3cret")],
        *[("X-A", "s3cret\r\nX-B: c"), ("X-A", "s3cret\n"), ("X A", "s3cret"), ("", "s3cret"), ("X:A", "s3cret")],
        ("X-A", "s3cret\ud800"),
    ],
)
def test_header_that_means_another_request_is_refused_and_not_shown(site: Site, name: str, value: str) -> None:
    with pytest.raises(Fail) as caught, ask(context(), "GET", site.url, headers={name: value}):
        pass
    assert "s3cret" not in str(caught.value)
    assert site.asked == []
