"""Answers that come later: the receiver says 202, and how its work ended by a request of its own to the HTTP API.

No thread is held meanwhile: the job snoozes, and dispatcher.answer makes it run at once. An answer that comes while
the job still runs is found by its next look, so the call is a matter of speed alone. What is known stands in one row,
dispatcher.callback, written only together with a checkpoint, which a try that is no longer the running one cannot
write.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import suppress
from typing import Any

from psycopg import errors
from pydantic import BaseModel, ConfigDict

from dispatcher import Context, Fail, Job, Snooze

from .connections import stopping
from .durations import Duration, seconds

SETTING = "DISPATCHER_CALLBACK_URL"
LOOK_S = 60.0  # between two looks, should nobody wake the job
_PATIENCE = "set local lock_timeout = '2s'"  # with whoever answers in a transaction of their own

_BEGIN = """
    insert into dispatcher.callback as c (job_id, token_hashes) values (%(id)s, array[%(hash)s])
    on conflict (job_id) do update
    set token_hashes = case when c.taken_at is null then c.token_hashes else '{}' end || excluded.token_hashes,
        answer = case when c.taken_at is null then c.answer end,
        answered_at = case when c.taken_at is null then c.answered_at end,
        accepted_at = case when c.taken_at is null then c.accepted_at end, taken_at = null"""
_ACCEPT = "update dispatcher.callback set accepted_at = coalesce(accepted_at, now()) where job_id = %(id)s"
_LOOK = """
    select c.answer, extract(epoch from c.accepted_at + make_interval(secs => %(within_s)s) - now())::float8
    from dispatcher.callback c where c.job_id = %(id)s and c.taken_at is null for no key update"""
_TAKE = "update dispatcher.callback set taken_at = now() where job_id = %(id)s"


class Callback(BaseModel):
    """That the receiver may answer 202 now, and for good later."""

    model_config = ConfigDict(extra="forbid")

    deadline: Duration = "1h"
    """How long to wait from the 202 on: seconds, or a text such as 90s, 15min, 1h, 7d."""

    @property
    def deadline_s(self) -> float:
        """In seconds."""
        return seconds(self.deadline)


class Answered(Exception):
    """The receiver says that its work failed, and that another try may help."""


class Waiting:
    """What a job knows of the answer it waits for."""

    def __init__(self, ctx: Context, job: Job, callback: Callback) -> None:
        self._ctx = ctx
        self._id = job.id
        self._callback = callback

    def begin(self) -> dict[str, str]:
        """The headers that tell the receiver where to answer, and with what; those of earlier tries still count."""
        base = os.environ.get(SETTING, "").strip().rstrip("/")
        if not base.startswith(("https://", "http://")):
            raise Fail(f"callbacks are off: set {SETTING} for the daemon to the public address of the HTTP API")
        token = secrets.token_urlsafe(32)
        self._write(_BEGIN, "asked", hash=hashlib.sha256(token.encode()).digest())
        return {"dispatcher-callback-url": f"{base}/jobs/{self._id}/callback", "dispatcher-callback-token": token}

    def accepted(self) -> Any:
        """The receiver works on it, and is not asked again: as look(), the result if it has answered already."""
        with suppress(errors.LockNotAvailable):  # somebody is answering: the next look tells whether that counted
            self._write(_ACCEPT, "accepted")
        ended, result = self.look()
        if not ended:
            raise Snooze(LOOK_S)
        return result

    def look(self) -> tuple[bool, Any]:
        """True and the job's result once there is a good answer; False where nobody has accepted yet.

        Raises Snooze while it is worked on, and what the job becomes where the answer is bad or too late.
        """
        try:
            return self._look()
        except errors.LockNotAvailable:  # somebody is answering, and has yet to commit
            raise Snooze(LOOK_S) from None

    def _look(self) -> tuple[bool, Any]:
        with stopping(self._ctx, self._ctx.connect()) as conn:
            conn.execute(_PATIENCE)
            row = conn.execute(_LOOK, {"id": self._id, "within_s": self._callback.deadline_s}).fetchone()
            answer, left_s = (None, None) if row is None else row
            if answer is None and left_s is None:
                return False, None
            if answer is None and left_s is not None and left_s > 0:
                raise Snooze(min(LOOK_S, left_s))
            conn.execute(_TAKE, {"id": self._id})
            if answer is not None and answer["status"] == "succeeded":
                self._ctx.complete(conn, answer.get("result"))
                return True, answer.get("result")
            self._ctx.checkpoint(conn, {"callback": "ended"})
        if answer is None:
            raise Fail(f"the receiver accepted the request and did not answer within {self._callback.deadline}")
        line = " ".join(answer["message"].split())[:1000] or "no reason given"
        raise Answered(line) if answer.get("retry") else Fail(f"the receiver says: {line}")

    def _write(self, statement: str, stage: str, **values: Any) -> None:
        with stopping(self._ctx, self._ctx.connect()) as conn:
            conn.execute(_PATIENCE)
            # The row first, as dispatcher.answer takes it, and then the job's.
            conn.execute(statement, {"id": self._id, **values})
            self._ctx.checkpoint(conn, {"callback": stage})
