"""http_request: what it sends, what it keeps, and who gets which secret."""

import base64
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from dispatcher_executors.http_request import HttpRequestPayload, http_request
from pydantic import ValidationError

from dispatcher.context import Context, Interrupted
from dispatcher.executor import Registry
from dispatcher.job import CancelReason, Job, State
from dispatcher.testing import Ended, run_inline
from tests.web import Asked, Reply, Site, serve

SECRET = "tok-5f2e9c1d"


@pytest.fixture
def sites(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Site]]:
    """Starts servers, all of which may be asked."""
    with pytest.MonkeyPatch.context() as patch:
        running: list[Any] = []
        urls: list[str] = []

        def start(answer: Callable[[Asked], Reply] | Reply) -> Site:
            manager = serve(answer if callable(answer) else lambda _asked: answer)
            site = manager.__enter__()
            running.append(manager)
            urls.append(site.url)
            patch.setenv("DISPATCHER_HTTP_HOSTS", ",".join(urls))
            return site

        yield start
        for manager in running:
            manager.__exit__(None, None, None)


def message(ended: Ended) -> str:
    assert ended.errors, ended
    text: str = ended.errors[-1]["message"]
    assert "\n" not in text
    return text


def test_answer_is_the_result(sites: Callable[..., Site]) -> None:
    kept = (("content-type", "application/json"), ("etag", '"a"'), ("set-cookie", "session=1"), ("x-secret", "b"))
    site = sites(Reply(201, b'{"id": 5}', kept))
    ended = run_inline(http_request, {"url": f"{site.url}/orders?a=1", "method": "POST", "body": {"json": {"n": 1}}})
    assert ended.state == State.SUCCEEDED
    assert ended.result.pop("elapsed_s") >= 0
    assert ended.result.pop("headers").keys() == {"content-type", "content-length", "date", "etag"}
    assert ended.result == {"status": 201, "url": f"{site.url}/orders?a=1", "body": {"id": 5}}
    asked = site.asked[0]
    assert (asked.method, asked.path, json.loads(asked.body)) == ("POST", "/orders?a=1", {"n": 1})
    assert asked.headers["content-type"] == "application/json"


def test_each_try_says_the_same_key_so_that_a_receiver_can_tell(sites: Callable[..., Site]) -> None:
    site = sites(Reply())
    for attempt in (1, 2):
        run_inline(http_request, {"url": site.url}, job_id=77, attempt=attempt)
    run_inline(http_request, {"url": site.url, "headers": {"Idempotency-Key": "own"}}, job_id=77)
    names = ("idempotency-key", "dispatcher-job-id", "dispatcher-attempt")
    said = [tuple(asked.headers.get_all(name) for name in names) for asked in site.asked]
    assert said == [(["77"], ["77"], ["1"]), (["77"], ["77"], ["2"]), (["own"], ["77"], ["1"])]


@pytest.mark.parametrize(
    ("body", "sent", "kind"),
    [
        ({"text": "né"}, "né".encode(), "text/plain; charset=utf-8"),
        ({"bytes": base64.b64encode(b"\0\xff").decode()}, b"\0\xff", "application/octet-stream"),
        ({"json": None}, b"null", "application/json"),
        ({"text": ""}, b"", "text/plain; charset=utf-8"),
    ],
)
def test_body_arrives_as_it_is(sites: Callable[..., Site], body: Any, sent: bytes, kind: str) -> None:
    site = sites(Reply())
    run_inline(http_request, {"url": site.url, "method": "PUT", "body": body})
    assert (site.asked[0].body, site.asked[0].headers["content-type"]) == (sent, kind)


@pytest.mark.parametrize(
    "more",
    [
        {"method": "CONNECT"},
        {"method": "get"},
        {"body": {"json": 1, "text": "a"}},
        {"body": {}},
        {"body": {"text": None}},
        {"body": {"bytes": "not base64!"}},
        {"headers": {"Host": "other.example"}},
        {"headers": {"Proxy-Authorization": "x"}},
        {"headers": {"Dispatcher-Job-Id": "8"}},
        {"headers": {"dispatcher_job_id": "8"}},  # CGI and WSGI take it for the other
        {"headers": {"Content_Length": "8"}},
        {"headers": {"A": "1", "a": "2"}},
        {"headers": {"A": {"secret": "../x"}}},
        {"headers": {"A": {"secret": "SHOP", "host": "x"}}},
        {"timeout": 0},
        {"success": [99]},
        {"verify": False},
    ],
)
def test_payload_that_could_mean_something_else_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        HttpRequestPayload.model_validate({"url": "https://example.com", **more})


def test_nothing_is_asked_until_the_setting_says_so() -> None:
    ended = run_inline(http_request, {"url": "https://example.com"})
    assert ended.state == State.FAILED
    assert "set DISPATCHER_HTTP_HOSTS for the daemon" in message(ended)


def test_without_httpx_the_executor_loads_and_the_job_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, sites: Callable[..., Site]
) -> None:
    site = sites(Reply())
    blocked = (
        "import sys; sys.modules['httpx'] = sys.modules['httpcore'] = None; import dispatcher_executors.http_request"
    )
    subprocess.run([sys.executable, "-c", blocked], check=True)
    monkeypatch.setitem(sys.modules, "httpx", None)
    ended = run_inline(http_request, {"url": site.url})
    assert (ended.state, message(ended)) == (
        State.FAILED,
        "a request to another host needs httpx: install pg-dispatcher[http]",
    )


# Statuses


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_passing_trouble_is_tried_again(sites: Callable[..., Site], status: int) -> None:
    site = sites(Reply(status, b"come\nback  later"))
    ended = run_inline(http_request, {"url": f"{site.url}/a?key=x"})
    assert ended.state == State.SCHEDULED
    assert message(ended).endswith(f"GET {site.url}/a was answered with status {status}: come back later")


@pytest.mark.parametrize("status", [400, 401, 404, 410, 302, 501])
def test_other_statuses_fail_for_good(sites: Callable[..., Site], status: int) -> None:
    ended = run_inline(http_request, {"url": sites(Reply(status, b"no")).url})
    assert ended.state == State.FAILED
    assert f"status {status}: no" in message(ended)


def test_payload_says_what_is_success_and_what_is_tried_again(sites: Callable[..., Site]) -> None:
    site = sites(Reply(404, b"gone"))
    assert run_inline(http_request, {"url": site.url, "success": [204, 404]}).result["body"] == "gone"
    assert run_inline(http_request, {"url": site.url, "retry": [404]}).state == State.SCHEDULED
    assert run_inline(http_request, {"url": sites(Reply(200)).url, "success": [204]}).state == State.FAILED


def test_nobody_there_is_tried_again(sites: Callable[..., Site]) -> None:
    site = sites(Reply())
    site.server.shutdown()
    site.server.server_close()
    ended = run_inline(http_request, {"url": site.url})
    assert (ended.state, "Connection refused" in message(ended)) == (State.SCHEDULED, True)


IN_AN_HOUR = "in an hour"  # the date of that, when the test runs


@pytest.mark.parametrize(
    ("said", "least", "most"),
    [
        ("120", 120, 120),
        ("0", 1, 1),
        ("99999999999999999999", 86400, 86400),
        (IN_AN_HOUR, 3000, 3700),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 1, 1),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 86400, 86400),
    ],
)
def test_retry_after_is_kept_within_a_day(sites: Callable[..., Site], said: str, least: float, most: float) -> None:
    if said == IN_AN_HOUR:
        said = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    ended = run_inline(http_request, {"url": sites(Reply(503, b"", (("retry-after", said),))).url})
    assert ended.state == State.SCHEDULED
    assert ended.delay_s is not None
    assert least <= ended.delay_s <= most


@pytest.mark.parametrize("said", ["soon", "-5", "1e9", "", "٣", "Mon, 99 Foo"])
def test_retry_after_that_is_none_leaves_the_usual_pause(sites: Callable[..., Site], said: str) -> None:
    header = (("retry-after", said.encode().decode("latin-1")),)
    ended = run_inline(http_request, {"url": sites(Reply(503, b"", header)).url})
    assert ended.delay_s == pytest.approx(5, rel=0.3)


# Secrets


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch, sites: Callable[..., Site]) -> Site:
    """A server that sends back what it got, and for which there is a secret."""

    def echo(asked: Asked) -> Reply:
        status = 500 if asked.path == "/bad" else 302 if asked.path == "/away" else 200
        got = str(asked.headers)
        body = (got if asked.path != "/json" else json.dumps({"got": got})).encode()
        kind = "application/json" if asked.path == "/json" else "text/plain"
        token = asked.headers.get("authorization", "")
        return Reply(status, body, (("content-type", kind), ("location", f"/x?{token}")))

    site = sites(echo)
    monkeypatch.setenv("DISPATCHER_SECRET_SHOP_TOKEN", SECRET + "\n")
    monkeypatch.setenv("DISPATCHER_SECRET_SHOP_TOKEN_HOSTS", site.url)
    return site


AUTHORIZED = {"headers": {"Authorization": {"secret": "SHOP_TOKEN", "prefix": "Bearer "}}}


@pytest.mark.parametrize("path", ["/", "/json", "/bad", "/away"])
def test_secret_is_sent_and_stands_in_no_result_or_error(shop: Site, path: str) -> None:
    ended = run_inline(http_request, {"url": shop.url + path, **AUTHORIZED})
    assert shop.asked[0].headers["authorization"] == f"Bearer {SECRET}"
    assert "Bearer ***" in repr(ended.result) + repr(ended.errors)
    assert SECRET not in repr(ended)


def echoed(shop: Site, monkeypatch: pytest.MonkeyPatch, secret: str, kind: str, status: int = 200) -> Any:
    """What becomes of an answer in which the server sends a secret back in its own way."""
    said: dict[str, Callable[[str], bytes]] = {
        "bytes": lambda token: b"\xff" + token.encode(),
        "padded": lambda token: b" " * 1990 + token.encode(),
        "python": lambda token: json.dumps({"got": token}).encode(),
        "php": lambda token: json.dumps({"got": token}).replace("/", "\\/").encode(),
        "utf-16": lambda token: token.encode("utf-16"),
        "latin-1": lambda token: token.encode("latin-1"),
    }
    media = {"python": "application/json", "php": "application/json"}.get(kind, f"text/plain; charset={kind}")
    shop.answer_by(
        lambda asked: Reply(
            status, said[kind](asked.headers["x"].encode("latin-1").decode()), (("content-type", media),)
        )
    )
    monkeypatch.setenv("DISPATCHER_SECRET_SHOP_TOKEN", secret)
    return run_inline(http_request, {"url": shop.url, "headers": {"X": {"secret": "SHOP_TOKEN"}}})


@pytest.mark.parametrize(
    ("secret", "kind"),
    [
        ('a"b/c\\d', "python"),
        ("né-5f2e9c1d", "python"),
        ("né-5f2e9c1d", "latin-1"),
        ("5f2e/9c1d+e", "php"),
        (SECRET, "utf-16"),
    ],
)
def test_secret_that_comes_back_written_otherwise_is_in_no_result(
    shop: Site, monkeypatch: pytest.MonkeyPatch, secret: str, kind: str
) -> None:
    body = echoed(shop, monkeypatch, secret, kind).result["body"]
    assert (body["got"] if isinstance(body, dict) else body.lstrip("\ufeff")) == "***"


def test_secret_that_comes_back_among_bytes_is_in_no_result(shop: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = echoed(shop, monkeypatch, SECRET, "bytes")
    assert base64.b64decode(ended.result["body_base64"]) == b"\xff***"


def test_beginning_of_a_secret_is_in_no_error_where_the_answer_is_cut(
    shop: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = echoed(shop, monkeypatch, SECRET, "padded", status=500)
    assert message(ended).endswith("was answered with status 500")


def test_secret_that_comes_back_is_in_no_log_however_much_is_logged(
    shop: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    run_inline(http_request, {"url": f"{shop.url}/away", **AUTHORIZED})
    assert SECRET in str(shop.asked[0].headers)
    assert SECRET not in caplog.text


def test_secret_of_one_host_is_not_sent_to_another_that_may_be_asked(shop: Site, sites: Callable[..., Site]) -> None:
    other = sites(Reply())
    ended = run_inline(http_request, {"url": other.url, **AUTHORIZED})
    assert ended.state == State.FAILED
    assert "DISPATCHER_SECRET_SHOP_TOKEN_HOSTS has no entry for it" in message(ended)
    ended = run_inline(http_request, {"url": other.url, "sign": {"secret": "SHOP_TOKEN"}})
    assert ended.state == State.FAILED
    assert other.asked == []


def test_redirect_to_another_host_does_not_take_the_secret_along(shop: Site, sites: Callable[..., Site]) -> None:
    other = sites(Reply())
    first = sites(Reply(302, b"", (("location", other.url),)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISPATCHER_SECRET_SHOP_TOKEN_HOSTS", first.url)
        ended = run_inline(http_request, {"url": first.url, "follow_redirects": True, **AUTHORIZED})
    assert ended.result["url"] == other.url + "/" or ended.result["url"] == other.url
    assert SECRET in str(first.asked[0].headers)
    assert other.asked[0].headers["authorization"] is None
    assert other.asked[0].headers["idempotency-key"] is None


@pytest.mark.parametrize("name", ["OTHER", "SHOP_TOKEN_HOSTS", "UNBOUND"])
def test_secret_that_is_not_set_or_for_no_host_is_named(shop: Site, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPATCHER_SECRET_UNBOUND", "hidden")
    ended = run_inline(http_request, {"url": shop.url, "headers": {"A": {"secret": name}}})
    assert ended.state == State.FAILED
    assert f"set DISPATCHER_SECRET_{name}" in message(ended)
    assert "hidden" not in message(ended)
    assert shop.asked == []


def test_payload_cannot_ask_for_other_variables_of_the_daemon(shop: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPATCHER_DSN", "postgresql://u:hidden@h/d")
    for name in ("DISPATCHER_DSN", "DSN", "PGPASSWORD"):
        ended = run_inline(http_request, {"url": shop.url, "headers": {"A": {"secret": name}}})
        assert ended.state == State.FAILED
    assert shop.asked == []


# Signatures

VERIFY = """
const crypto = require("crypto");
const [secret, id, timestamp, signature, body] = process.argv.slice(1);
const key = secret.startsWith("whsec_") ? Buffer.from(secret.slice(6), "base64") : Buffer.from(secret);
const made = crypto.createHmac("sha256", key).update(`${id}.${timestamp}.${body}`).digest("base64");
console.log(signature.split(" ").includes("v1," + made) && Math.abs(Date.now() / 1000 - timestamp) < 300);
"""


@pytest.mark.parametrize("secret", ["whsec_" + base64.b64encode(bytes(range(32))).decode(), "any text, né"])
def test_signed_webhook_is_believed_by_a_receiver_in_another_language(
    sites: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    site = sites(Reply())
    monkeypatch.setenv("DISPATCHER_SECRET_HOOK", secret)
    monkeypatch.setenv("DISPATCHER_SECRET_HOOK_HOSTS", site.url)
    payload = {"url": site.url, "method": "POST", "body": {"json": {"a": "é"}}, "sign": {"secret": "HOOK"}}
    ids = set()
    for attempt in (1, 2):
        assert run_inline(http_request, payload, job_id=9, attempt=attempt).state == State.SUCCEEDED
        asked = site.asked[-1]
        signed = [asked.headers[f"webhook-{name}"] for name in ("id", "timestamp", "signature")]
        ids.add(signed[0])
        for body, answer in ((asked.body.decode(), "true"), (asked.body.decode() + " ", "false")):
            command = [node, "-e", VERIFY, "--", secret, *signed, body]
            assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == answer
    assert ids == {"9"}


def test_example_of_the_specification() -> None:
    """standardwebhooks.com gives this one."""
    from dispatcher_executors.http_secrets import sign  # noqa: PLC0415

    signed = sign(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert signed["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


# Bodies


def test_large_answer_goes_to_the_store_and_small_ones_if_asked(sites: Callable[..., Site]) -> None:
    big = bytes(range(256)) * 2000
    site = sites(lambda asked: Reply(body=big if asked.path == "/big" else b"small"))
    ended = run_inline(http_request, {"url": f"{site.url}/big"})
    assert (ended.stored, ended.result["stored_bytes"]) == ({"response": big}, len(big))
    assert ended.result_url is not None
    assert "body" not in ended.result
    assert run_inline(http_request, {"url": site.url, "store": True}).stored == {"response": b"small"}
    assert run_inline(http_request, {"url": site.url}).stored == {}


def test_answer_over_the_bound_fails_for_good(sites: Callable[..., Site]) -> None:
    site = sites(Reply(body=bytes(1_000_000)))
    for most in (10, 500_000):
        ended = run_inline(http_request, {"url": site.url, "max_response_bytes": most})
        assert ended.state == State.FAILED
        assert f"more than {most} bytes: raise max_response_bytes" in message(ended)


@pytest.mark.parametrize(
    ("kind", "body", "shown"),
    [
        ("application/json", b'{"a": "x\\u0000y"}', '{"a": "x\\u0000y"}'),
        ("application/json", b"[NaN]", "[NaN]"),
        ("application/json", b"1e999", "1e999"),
        ("application/problem+json", b'{"a": 1}', {"a": 1}),
        ("application/json", b"{", "{"),
        ("application/json", b"[" * 100_000, "[" * 100_000),
        ("application/json", b'"\\ud800"', '"\\ud800"'),
        ("text/html; charset=latin-1", b"\xe9", "é"),
        ("text/plain", b"a\0b", "a\ufffdb"),
        ("", b"plain", "plain"),
    ],
)
def test_body_that_postgresql_cannot_store_does_not_send_the_request_again(
    sites: Callable[..., Site], kind: str, body: bytes, shown: Any
) -> None:
    ended = run_inline(http_request, {"url": sites(Reply(body=body, headers=(("content-type", kind),))).url})
    assert (ended.state, ended.result["body"]) == (State.SUCCEEDED, shown)


@pytest.mark.parametrize("kind", ["image/png", "text/plain; charset=hex", "text/plain; charset=no-such"])
def test_bytes_that_are_no_text_are_kept(sites: Callable[..., Site], kind: str) -> None:
    ended = run_inline(http_request, {"url": sites(Reply(body=b"\xff\0", headers=(("content-type", kind),))).url})
    assert base64.b64decode(ended.result["body_base64"]) == b"\xff\0"


def test_cancel_ends_a_request_that_hangs_at_once(sites: Callable[..., Site]) -> None:
    over = threading.Event()
    site = sites(lambda asked: Reply(200 + over.wait(50)))
    payload = HttpRequestPayload(url=site.url)
    job = Job(7, "http_request", None, payload, 0, 1, 0, datetime.now(UTC))

    class Silent:
        def report_progress(self, *_: object) -> None:
            """Nobody watches."""

    ctx = Context(job, timeout_s=60, runtime=Silent())  # type: ignore[arg-type]

    def cancel() -> None:
        site.arrived.wait()
        ctx.cancel(CancelReason.REQUESTED)

    threading.Thread(target=cancel).start()
    begun = datetime.now(UTC)
    with pytest.raises(Interrupted):
        http_request(job, ctx)
    assert datetime.now(UTC) - begun < timedelta(seconds=5)
    over.set()


def test_it_is_installed_and_its_schema_is_published() -> None:
    spec = Registry.load().get("http_request")
    assert spec is not None
    assert (spec.limit, spec.timeout_s, spec.retry.max_attempts) == (16, 60, 5)
    schema = spec.schema()
    assert schema is not None
    assert (schema["required"], schema["additionalProperties"]) == (["url"], False)
