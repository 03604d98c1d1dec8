"""Requests to other hosts: the gate through which all executors go that ask another server.

    with ask(ctx, "GET", url, headers={"accept": "text/plain"}, timeout_s=10) as answer:
        if answer.status == 200:
            text = answer.read(100_000)

What may be asked is told by DISPATCHER_HTTP_HOSTS (outside_rules.py), how a connection is made by outside_wire.py.
Proxies, cookies and .netrc are not used.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dispatcher import Context, Fail

from .outside_rules import Target, allow

if TYPE_CHECKING:
    import httpcore

REDIRECTS = 5
TIMEOUT_S = 30.0
SPARE_S = 1.0  # before the job's own deadline, so that a slow server is a failed try and no job timed out for good
# What the connection itself is about, or would make one host of another.
UNSENDABLE = frozenset(
    ["connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"]
)
_HARMLESS = frozenset(["accept", "accept-encoding", "accept-language", "user-agent"])
_CHUNK = 65536


class Unreachable(Exception):
    """No whole answer came: no connection, no TLS, no time, or a body that broke off. Another try may help."""


class TooLarge(Exception):
    """The body is larger than the reader allows."""


@dataclass(frozen=True, slots=True)
class _Question:
    method: str
    headers: dict[str, bytes]
    body: bytes | None


class Answer:
    """What came back. The body is read on demand, and only inside `with ask(...)`."""

    def __init__(self, ctx: Context, target: Target, response: httpcore.Response) -> None:
        self.url = target.url
        """The last one, where redirects were followed."""
        self.status: int = response.status
        self.headers: dict[str, str] = {}
        """By name in lower case; what came several times, with commas between."""
        for name, value in response.headers:
            key, text = name.decode("latin-1").lower(), value.decode("utf-8", "replace")
            self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text
        self._ctx = ctx
        self._target = target
        self._response = response

    def chunks(self) -> Iterator[bytes]:
        """The body, unpacked, in pieces of at most 64 KiB; raises Unreachable where it breaks off."""
        with _named(self._ctx, self._target):
            for chunk in _unpacked(self._response.iter_stream(), self.headers.get("content-encoding", "")):
                self._ctx.raise_if_canceled()
                yield chunk

    def read(self, limit: int) -> bytes:
        """The whole body; raises TooLarge where it has more than `limit` bytes."""
        body = self.start(limit + 1)
        if len(body) > limit:
            raise TooLarge(f"{self._target.authority} answered with more than {limit} bytes")
        return body

    def start(self, limit: int) -> bytes:
        """The first `limit` bytes of the body; the rest is not read."""
        body = bytearray()
        for chunk in self.chunks():
            body += chunk
            if len(body) >= limit:
                break
        return bytes(body[:limit])


@contextmanager
def ask(
    ctx: Context,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    timeout_s: float = TIMEOUT_S,
    redirects: int = 0,
) -> Iterator[Answer]:
    """Asks a server that the administrator has allowed; gives the answer once its headers are there.

    `timeout_s` is for everything, the body included; the job's deadline ends it earlier, and a cancel at once. Up to
    `redirects` are followed, each checked like the first URL; another origin gets neither the headers nor the body.
    Raises Fail for what is not allowed, and Unreachable where another try may help.
    """
    target = allow(url)  # first: it says so where httpx is missing, which brings httpcore along
    import httpcore  # noqa: PLC0415

    from .outside_wire import Backend, Wire, tls  # noqa: PLC0415

    deadline = time.monotonic() + timeout_s
    wire = Wire(deadline if ctx.deadline is None else min(deadline, ctx.deadline - SPARE_S))
    question = _Question(method, _checked(headers or {}), body)
    ctx.raise_if_canceled()
    ctx.on_cancel(wire.cut)
    for followed in range(redirects + 1):
        with ExitStack() as stack:
            stack.callback(wire.close)
            with _named(ctx, target):
                connection = stack.enter_context(
                    httpcore.HTTPConnection(
                        httpcore.Origin(target.scheme.encode(), target.host.encode(), target.port),
                        ssl_context=tls() if target.scheme == "https" else None,
                        network_backend=Backend(wire, target),
                    )
                )
                response = stack.enter_context(
                    connection.stream(
                        question.method,
                        httpcore.URL(
                            scheme=target.scheme, host=target.host, port=target.port, target=target.path.encode()
                        ),
                        headers=[
                            (b"Host", target.authority.encode()),
                            *((n.encode(), v) for n, v in question.headers.items()),
                        ],
                        content=question.body,
                    )
                )
            answer = Answer(ctx, target, response)
            location = answer.headers.get("location")
            if not redirects or location is None or answer.status not in (301, 302, 303, 307, 308):
                yield answer
                return
        if followed < redirects:
            target, question = _follow(target, question, answer.status, location)
    raise Fail(f"{url.partition('?')[0]} leads on and on: more than {redirects} redirects")


def _follow(here: Target, question: _Question, status: int, location: str) -> tuple[Target, _Question]:
    """Where a redirect leads, if that may be asked, and with what."""
    import httpx  # noqa: PLC0415

    try:
        there = allow(str(httpx.URL(here.url).join(location)))
    except (httpx.InvalidURL, ValueError):
        raise Fail(f"{here.authority} redirects to what is no URL") from None
    except Fail as exc:
        raise Fail(f"{here.authority} redirects: {exc}") from exc
    if (here.scheme, there.scheme) == ("https", "http"):
        raise Fail(f"{here.authority} redirects from https to http, which is refused")
    method, headers, body = question.method, question.headers, question.body
    if (status == 303 and method != "HEAD") or (status in (301, 302) and method == "POST"):
        method, body = "GET", None
        headers = {name: value for name, value in headers.items() if not name.startswith("content-")}
    if there.origin != here.origin:
        if body is not None or method not in ("GET", "HEAD", "OPTIONS"):
            raise Fail(f"{here.authority} redirects a {method} to {there.authority}, which must not get what was sent")
        headers = {name: value for name, value in headers.items() if name in _HARMLESS}
    return there, _Question(method, headers, body)


def _checked(headers: Mapping[str, str]) -> dict[str, bytes]:
    """The headers with names in lower case. Errors do not show a value: it may be secret."""
    checked = {"user-agent": b"pg-dispatcher", "accept": b"*/*", "accept-encoding": b"gzip, deflate"}
    for name, value in headers.items():
        key = name.lower()
        if key in UNSENDABLE or key.startswith("proxy-"):
            raise Fail(f"header {name} may not be set: it belongs to the connection")
        if not key.isascii() or not key.replace("-", "a").replace("_", "a").isalnum():
            raise Fail(f"{name!r} is no name of a header")
        if any(ord(char) < 32 or char == "\x7f" for char in value) or value != value.strip():
            raise Fail(f"header {name} holds a character that no header may hold, such as a line break")
        try:
            checked[key] = value.encode()
        except UnicodeEncodeError:
            raise Fail(f"header {name} is not Unicode text") from None
    return checked


@contextmanager
def _named(ctx: Context, target: Target) -> Iterator[None]:
    """What httpcore raises, as what it means for the job."""
    import httpcore  # noqa: PLC0415

    try:
        yield
    except httpcore.LocalProtocolError as exc:  # its text may show a header
        raise Fail(f"the request to {target.authority} is not one that HTTP allows") from exc
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, zlib.error) as exc:
        ctx.raise_if_canceled()
        reason = _broken(exc) if isinstance(exc, httpcore.ProtocolError) else exc
        raise Unreachable(f"no whole answer from {target.scheme}://{target.authority}: {reason}") from exc


def _broken(exc: Exception) -> str:
    """Not in httpcore's words, which show what a server says that is none for HTTP."""
    hung_up = str(exc).startswith(("Server disconnected", "peer closed"))
    return "it hung up" if hung_up else "what it says is not HTTP"


def _unpacked(raw: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """In bounded pieces: a few bytes may unpack to gigabytes."""
    kind = encoding.strip().lower()
    if kind in ("", "identity"):
        yield from raw
        return
    if kind not in ("gzip", "x-gzip", "deflate"):
        raise Fail(f"the answer is packed as {encoding[:50]!r}, which nobody asked for")
    unpacker = zlib.decompressobj(wbits=47)  # gzip or zlib, as its first bytes say
    begun = False
    for data in raw:
        begun, rest = True, data
        while rest:
            if unpacker.eof:
                if rest[:1] != b"\x1f":
                    return  # some servers fill up with zeros
                unpacker = zlib.decompressobj(wbits=47)  # a gzip file can have several parts
            yield unpacker.decompress(rest, _CHUNK)
            rest = unpacker.unconsumed_tail or unpacker.unused_data
    while begun and not unpacker.eof and (rest := unpacker.decompress(b"", _CHUNK)):
        yield rest
    if begun and not unpacker.eof:
        raise zlib.error("the packed body is cut short")
