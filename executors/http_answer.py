"""What becomes of an answer: the job's result, a file in the store, or the line of an error."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from datetime import UTC
from email.message import Message
from email.utils import parsedate_to_datetime
from itertools import chain
from typing import Any

from dispatcher import Context, Fail, StoreError

from .outside import Answer

INLINE_BYTES = 256_000  # of a body that becomes part of the result; a larger one goes to the store
LONGEST_PAUSE_S = 86400.0  # a server must not park a job for ever
STORED_AS = "response"
SHOWN = ("content-type", "content-length", "date", "etag", "last-modified", "link", "location", "x-request-id")


class Redactor:
    """Keeps the secrets of a request out of what is stored: some servers send back what they got."""

    def __init__(self) -> None:
        self._forms: set[str] = set()

    def add(self, secret: str) -> str:
        """Takes note of one, as it is and as JSON may write it, and returns it."""
        forms = {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
        self._forms |= forms | {form.replace("/", "\\/") for form in forms}  # as PHP does
        return secret

    def clean(self, text: str) -> str:
        """The text without any of them, and storable: PostgreSQL knows no NUL."""
        for form in self._forms:
            text = text.replace(form, "***")
        return text.replace("\0", "\ufffd")

    def clean_bytes(self, data: bytes, *, cut: bool = False) -> bytes:
        """Bytes without any of them, nor the beginning of one at the end where they were `cut`."""
        forms = [form.encode() for form in self._forms]
        for form in forms:
            data = data.replace(form, b"***")
        for form in forms if cut else ():
            begun = (size for size in range(len(form) - 1, 0, -1) if data.endswith(form[:size]))
            data = data[: len(data) - next(begun, 0)]
        return data


def headers_of(answer: Answer, redactor: Redactor) -> dict[str, str]:
    """Those that say something about the body and where it is."""
    return {name: redactor.clean(answer.headers[name])[:1000] for name in SHOWN if name in answer.headers}


def body_of(answer: Answer, ctx: Context, redactor: Redactor, *, most: int, store: bool) -> dict[str, Any]:
    """The body as part of the result, or its size once it is in the store; never more than `most` bytes of it."""
    body = _Body(answer, ctx, most)
    head = b"" if store else body.take(INLINE_BYTES + 1)
    if not store and len(head) <= INLINE_BYTES:
        return shown(head, answer.headers.get("content-type", ""), redactor)
    body.give_back(head)
    try:
        ctx.store(STORED_AS, body)
    except StoreError as exc:
        if body.problem is not None:  # what the store met with was the server's
            raise body.problem from exc
        wanted = "store was asked for" if store else f"the body has more than {INLINE_BYTES} bytes"
        raise Fail(f"the answer cannot be kept: {wanted}, and {exc}") from exc
    return {"stored_bytes": body.read_bytes}


def error_line(answer: Answer, method: str, redactor: Redactor, body: bytes | None = None) -> str:
    """The status and how the body begins, in one line; the body is read unless it is given."""
    start = answer.start(2000) if body is None else body[:2000]
    start = redactor.clean_bytes(start, cut=len(start) == 2000)
    said = redactor.clean(start.decode(errors="replace"))
    where = redactor.clean(answer.url.partition("?")[0])
    line = " ".join(said.split())[:300]
    return f"{method} {where} was answered with status {answer.status}" + (f": {line}" if line else "")


def pause_of(answer: Answer) -> float | None:
    """Seconds that the server asks for by Retry-After, at most a day; None where it does not."""
    text = answer.headers.get("retry-after", "").strip()
    if text.isdecimal() and text.isascii():
        asked = float(text[:12])
    else:
        try:
            when = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        try:
            asked = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - _now(answer)
        except (ValueError, OverflowError):
            return None
    return min(LONGEST_PAUSE_S, max(1.0, asked))


def _now(answer: Answer) -> float:
    """By the server's clock, where it tells: its Retry-After goes by that."""
    try:
        return parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError, TypeError, IndexError, OverflowError):
        return time.time()


class _Body:
    """A body as a stream for the store, in constant memory."""

    def __init__(self, answer: Answer, ctx: Context, most: int) -> None:
        self.read_bytes = 0
        self.problem: Exception | None = None
        self._chunks: Iterator[bytes] = answer.chunks()
        self._ctx = ctx
        self._most = most
        length = answer.headers.get("content-length", "")
        self._length = int(length[:18]) if length.isascii() and length.isdecimal() else 0

    def read(self, _size: int, /) -> bytes:
        """The next piece, at most 64 KiB; none at the end."""
        try:
            for chunk in self._chunks:
                if chunk:
                    return self._counted(chunk)
        except Exception as exc:
            self.problem = exc
            raise
        return b""

    def take(self, size: int) -> bytes:
        """At least `size` bytes, or all there are."""
        taken = bytearray()
        while len(taken) < size and (chunk := self.read(size)):
            taken += chunk
        return bytes(taken)

    def give_back(self, head: bytes) -> None:
        """To be read again."""
        self.read_bytes -= len(head)
        self._chunks = chain([head], self._chunks)

    def _counted(self, chunk: bytes) -> bytes:
        self.read_bytes += len(chunk)
        if self.read_bytes > self._most:
            raise Fail(f"the answer has more than {self._most} bytes: raise max_response_bytes if that is meant")
        if self._length:
            self._ctx.progress(100 * self.read_bytes / self._length)
        return chunk


def shown(body: bytes, kind: str, redactor: Redactor) -> dict[str, Any]:
    """A body that came as `kind`, as part of a result."""
    body = redactor.clean_bytes(body)
    header = Message()
    header["content-type"] = kind
    media = header.get_content_type()
    try:
        text = body.decode(str(header.get_param("charset", "utf-8")))
        text.encode()  # some charsets give half of a surrogate pair
    except (LookupError, ValueError):
        return {"body_base64": base64.b64encode(body).decode()}
    text = redactor.clean(text)
    if media == "application/json" or media.endswith("+json"):
        return {"body": parsed(text)}
    return {"body": text}


def parsed(text: str) -> Any:
    """As JSON, or as it is where it is none that PostgreSQL can store."""
    try:
        value = json.loads(text)
        again = json.dumps(value, ensure_ascii=False, allow_nan=False)
        again.encode()
    except (ValueError, RecursionError):
        return text
    return text if "\\u0000" in again else value
