"""What the daemon lends to a job, with nothing behind it: everything is noted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import quote

from psycopg import Connection

from dispatcher.batch import Callback
from dispatcher.errors import DispatcherError, InvalidOption
from dispatcher.job import Job, JobInfo
from dispatcher.operations import EMPTY_BATCH, batch_options
from dispatcher.options import Options, encode_callback, encode_options, encode_payload
from dispatcher.outcome import encode
from dispatcher.store_source import RESULT, Source, check_name, chunks


@dataclass(frozen=True, slots=True)
class Enqueued:
    """A job that the executor or a hook enqueued; `payload` as JSON would give it back."""

    id: int
    type: str
    payload: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)


class FakeRuntime:
    """Implements dispatcher.context.Runtime. What ctx.complete says counts as committed."""

    def __init__(
        self,
        *,
        connect: Callable[[], Connection[Any]] | None,
        max_result_bytes: int,
        results: Mapping[int, Any] | None = None,
    ) -> None:
        self.max_result_bytes = max_result_bytes
        self._results = dict(results or {})
        self._connect = connect
        self.progress: list[tuple[float, str | None]] = []
        self.enqueued: list[Enqueued] = []
        self.batches = 0
        self.stored: dict[str, bytes] = {}
        self.checkpoint_left: Any = None

    def report_progress(self, job_id: int, attempt: int, percent: float, message: str | None) -> None:  # noqa: ARG002
        """Notes it."""
        self.progress.append((percent, message))

    def connect(self) -> Connection[Any]:
        """A connection as the test gives it."""
        if self._connect is None:
            raise DispatcherError("this run has no database: give run_inline a function as `connect`")
        return self._connect()

    def enqueue(self, conn: Connection[Any] | None, type: str, payload: Any, options: dict[str, Any]) -> int:  # noqa: ARG002
        """Notes it, once it is a payload and options that the real one takes."""
        encode_options(cast(Options, options))
        body = json.loads(encode_payload(payload))
        self.enqueued.append(Enqueued(1_000_000 + len(self.enqueued), type, body, options))
        return self.enqueued[-1].id

    def enqueue_batch(
        self,
        conn: Connection[Any] | None,
        job: Job,  # noqa: ARG002
        type: str,
        payloads: Iterable[Any],
        callback: str | Callback | None,
        options: dict[str, Any],
    ) -> int:
        """Notes each job with the batch as its `parent`, and the callback as a job `after` it."""
        batch_options(cast(Options, options))
        bodies = list(payloads)
        if not bodies:
            raise InvalidOption(EMPTY_BATCH)
        self.batches += 1
        batch = 2_000_000 + self.batches
        for body in bodies:
            self.enqueue(conn, type, body, options | {"parent": batch})
        if callback is not None:
            given = encode_callback(callback)
            self.enqueue(
                conn, given["type"], given["payload"], given["options"] | {"after": batch, "on_failure": "run"}
            )
        return batch

    def predecessors(self, job_id: int) -> list[JobInfo]:  # noqa: ARG002
        """Only their results are there."""
        raise DispatcherError("this run has no database: ctx.results() answers what run_inline is given as `results`")

    def results(self, job_id: int) -> dict[int, Any]:  # noqa: ARG002
        """As the test gives them."""
        return dict(self._results)

    def complete(self, conn: Connection[Any], job: Job, result: Any, result_url: str | None) -> None:  # noqa: ARG002
        """Takes what the real one takes."""
        text = "" if result is None else encode(result)
        if len(text.encode()) > self.max_result_bytes:
            self.store_result(job, text)

    def completed(self, job: Job) -> bool | None:  # noqa: ARG002
        """It always is."""
        return True

    def checkpoint(self, conn: Connection[Any], job: Job, value: Any) -> None:  # noqa: ARG002
        """Notes it."""
        self.checkpoint_left = json.loads(encode(value))

    def store(self, job: Job, name: str, source: Source, check: Callable[[], None]) -> str:
        """Keeps it in memory."""
        self.stored[check_name(name)] = b"".join(chunks(source, check))
        return f"memory://inline/{job.id}/{job.attempt}/{quote(name, safe='')}"

    def store_result(self, job: Job, text: str) -> str:
        """The same for a large result."""
        self.stored[RESULT] = text.encode()
        return f"memory://inline/{job.id}/{job.attempt}/{RESULT}"
