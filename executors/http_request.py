"""Type `http_request`: sends a request to a host that the administrator of the daemon has allowed.

A try that was cut off may have arrived, so each carries the same Idempotency-Key, by which the receiver can tell.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dispatcher import Context, Fail, Job, Retry, executor

from .http_answer import Redactor, body_of, error_line, headers_of, pause_of
from .http_callback import Callback, Waiting
from .http_secrets import Secret, Signature, read_secret, sign
from .outside import REDIRECTS, UNSENDABLE, Answer, ask
from .outside_rules import Target, allow

Status = Annotated[int, Field(ge=100, le=599)]

PASSING = [408, 425, 429, 500, 502, 503, 504]
OURS = ("dispatcher-", "webhook-", "proxy-")


class Body(BaseModel):
    """What is sent: one of these."""

    model_config = ConfigDict(extra="forbid")

    as_json: Any = Field(None, alias="json")
    """Any JSON value, sent as application/json."""
    as_text: str = Field("", alias="text")
    """Sent in UTF-8."""
    as_bytes: str = Field("", alias="bytes")
    """In base64."""

    @model_validator(mode="after")
    def _one(self) -> Body:
        if len(self.model_fields_set) != 1:
            raise ValueError("a body is one of json, text and bytes")
        self.encoded()
        return self

    def encoded(self) -> tuple[bytes, str]:
        """Its bytes, and what kind they are."""
        if "as_text" in self.model_fields_set:
            return self.as_text.encode(), "text/plain; charset=utf-8"
        if "as_bytes" in self.model_fields_set:
            try:
                return base64.b64decode(self.as_bytes, validate=True), "application/octet-stream"
            except binascii.Error:
                raise ValueError("bytes must be in base64") from None
        return json.dumps(self.as_json, ensure_ascii=False, allow_nan=False).encode(), "application/json"


class HttpRequestPayload(BaseModel):
    """What `http_request` accepts."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(max_length=8000)
    """Of a host in DISPATCHER_HTTP_HOSTS; without a password, which belongs into a header."""
    method: Literal["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    headers: dict[str, str | Secret] = {}
    """A value is a text, or {"secret": "NAME", "prefix": "Bearer "} for one from the daemon's environment."""
    body: Body | None = None
    timeout: float = Field(30.0, gt=0, le=86400)
    """Seconds for all of it, the answer's body included."""
    success: list[Status] | None = None
    """Statuses that end the job well; by default all from 200 to 299."""
    retry: list[Status] = PASSING
    """Statuses after which it is tried again; any other fails the job for good."""
    follow_redirects: bool = False
    """At most 5; another origin gets neither headers nor body."""
    max_response_bytes: int = Field(10_000_000, ge=0, le=10_000_000_000)
    store: bool = False
    """Keep the body as a file in the store, not in the result; one of more than 256,000 bytes goes there anyway."""
    sign: Signature | None = None
    """Sign the request as a Standard Webhook."""
    callback: Callback | None = None
    """Let the receiver answer 202 and finish the job later, by a request to the HTTP API."""

    @field_validator("headers")
    @classmethod
    def _sendable(cls, headers: dict[str, str | Secret]) -> dict[str, str | Secret]:
        for name in headers:
            if name.lower() in UNSENDABLE or name.lower().startswith(OURS):
                raise ValueError(f"{name} is not for the payload to set")
        if len({name.lower() for name in headers}) < len(headers):
            raise ValueError("a header may stand there once")
        return headers


class RequestFailed(Exception):
    """The server answered with a status after which another try may help."""


@executor(
    "http_request",
    limit=16,
    timeout=timedelta(minutes=1),
    max_attempts=5,
    retry_timeouts=True,  # as any other request that gets no answer
    payload=HttpRequestPayload,
)
def http_request(job: Job, ctx: Context) -> Any:
    """Sends a request to an allowed host, and keeps the answer."""
    payload: HttpRequestPayload = job.payload
    redactor = Redactor()
    target = allow(payload.url)
    headers, body = prepare(job, target, redactor)
    waiting = None if payload.callback is None else Waiting(ctx, job, payload.callback)
    if waiting is not None:
        ended, result = waiting.look()
        if ended:
            return result
        headers |= waiting.begin()
        redactor.add(headers["dispatcher-callback-token"])
    ctx.progress(0, f"asks {target.authority}")
    started = time.monotonic()
    with ask(
        ctx,
        payload.method,
        payload.url,
        headers=headers,
        body=body,
        timeout_s=payload.timeout,
        redirects=REDIRECTS if payload.follow_redirects else 0,
    ) as answer:
        if waiting is not None and answer.status == 202:
            waiting.accepted()
            return waiting.look()[1]
        judge(answer, payload, redactor)
        shown = {"status": answer.status, "url": redactor.clean(answer.url), "headers": headers_of(answer, redactor)}
        shown |= body_of(answer, ctx, redactor, most=payload.max_response_bytes, store=payload.store)
    return shown | {"elapsed_s": round(time.monotonic() - started, 3)}


def prepare(job: Job, target: Target, redactor: Redactor) -> tuple[dict[str, str], bytes | None]:
    """The headers, with secrets that this host may get, and the body."""
    payload: HttpRequestPayload = job.payload
    body, kind = (None, None) if payload.body is None else payload.body.encoded()
    headers = {"idempotency-key": str(job.id)} | ({"content-type": kind} if kind else {})
    for name, value in payload.headers.items():
        if isinstance(value, Secret):
            headers[name.lower()] = value.prefix + redactor.add(read_secret(value.secret, target))
        else:
            headers[name.lower()] = value
    headers |= {"dispatcher-job-id": str(job.id), "dispatcher-attempt": str(job.attempt)}
    if payload.sign is not None:
        # The job's id, the same in each try, so that a receiver can tell a second delivery.
        secret = redactor.add(read_secret(payload.sign.secret, target))
        headers |= sign(secret, str(job.id), int(time.time()), body or b"")
    return headers, body


def judge(answer: Answer, payload: HttpRequestPayload, redactor: Redactor) -> None:
    """Returns where the answer is a success; else raises what the job becomes."""
    status = answer.status
    if 200 <= status < 300 if payload.success is None else status in payload.success:
        return
    line = error_line(answer, payload.method, redactor)
    if status not in payload.retry:
        raise Fail(line)
    pause = pause_of(answer)
    if pause is not None:
        raise Retry(pause, line)
    raise RequestFailed(line)
