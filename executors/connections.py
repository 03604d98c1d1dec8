"""Connections of jobs: what runs on one ends when the job is asked to stop, and the job with it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg import Connection, errors

from dispatcher import Context

ASK_AGAIN_S = 0.2  # a request to cancel that comes between two statements is lost


@contextmanager
def stopping(ctx: Context, conn: Connection[Any]) -> Iterator[Connection[Any]]:
    """The connection, as `with conn` gives it: committed at the end, rolled back by an exception, and closed.

    When the job is asked to stop, statements are canceled until the last one is over, and the job ends as interrupted.
    """
    over = threading.Event()

    def cancel() -> None:
        while not over.is_set():
            with suppress(psycopg.Error):
                conn.cancel_safe()
            over.wait(ASK_AGAIN_S)

    try:
        with conn:
            try:
                # In a thread of its own: a job that was asked already would wait here for its own end.
                ctx.on_cancel(threading.Thread(target=cancel, name=f"cancel {ctx.job.id}", daemon=True).start)
                ctx.raise_if_canceled()
                yield conn
            finally:
                over.set()
    except errors.QueryCanceled:
        ctx.raise_if_canceled()
        raise
