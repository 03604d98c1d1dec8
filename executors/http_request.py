"""Type `http_request`: sends a request to a host that the administrator of the daemon has allowed.

A try that was cut off may have arrived, so each carries the same Idempotency-Key, by which the receiver can tell.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Annotated, Any

from pydantic import Field

from dispatcher import Context, Fail, Job, Retry, executor

from .http_answer import Redactor, body_of, error_line, headers_of, pause_of
from .http_callback import Callback, Waiting
from .http_question import Question
from .http_secrets import Signature, read_secret, sign
from .outside import REDIRECTS, Answer, ask
from .outside_rules import Target, allow

Status = Annotated[int, Field(ge=100, le=599)]

PASSING = [408, 425, 429, 500, 502, 503, 504]


class HttpRequestPayload(Question):
    """What `http_request` accepts."""

    timeout: float = Field(30.0, gt=0, le=86400)
    """Seconds for all of it, the answer's body included."""
    success: list[Status] | None = None
    """Statuses that end the job well; by default all from 200 to 299."""
    retry: list[Status] = PASSING
    """Statuses after which it is tried again; any other fails the job for good."""
    max_response_bytes: int = Field(10_000_000, ge=0, le=10_000_000_000)
    store: bool = False
    """Keep the body as a file in the store, not in the result; one of more than 256,000 bytes goes there anyway."""
    sign: Signature | None = None
    """Sign the request as a Standard Webhook."""
    callback: Callback | None = None
    """Let the receiver answer 202 and finish the job later, by a request to the HTTP API."""


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
            return waiting.accepted()
        judge(answer, payload, redactor)
        shown = {"status": answer.status, "url": redactor.clean(answer.url), "headers": headers_of(answer, redactor)}
        shown |= body_of(answer, ctx, redactor, most=payload.max_response_bytes, store=payload.store)
    return shown | {"elapsed_s": round(time.monotonic() - started, 3)}


def prepare(job: Job, target: Target, redactor: Redactor) -> tuple[dict[str, str], bytes | None]:
    """The headers and the body, the same in each try but for the time of a signature."""
    payload: HttpRequestPayload = job.payload
    headers, body = payload.prepare(job, target, redactor)
    headers = {"idempotency-key": str(job.id)} | headers
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
