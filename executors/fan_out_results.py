"""What the children of a fan_out job left, gathered once their batch has ended."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from psycopg import Connection

from dispatcher import Cancel, Fail, Partial

ROWS = 1000  # children read at a time
MOST_BYTES = 64 << 20  # of results in one list: many children of up to max_result_bytes each would fill the memory
MAX_ERRORS = 1000  # that are listed; the rest is counted
MAX_MESSAGE = 300
ENDED = {"partial": "succeeded in part", "failed": "failed", "canceled": "was canceled"}


class Child(NamedTuple):
    """One that has ended."""

    id: int
    state: Literal["succeeded", "partial", "failed", "canceled"]
    result: Any
    left_out: bool
    """It has a result, which is one too many."""
    result_url: str | None
    message: str | None


class Gathered:
    """What the children of a batch that has ended left."""

    def __init__(self, conn: Connection[Any], batch: int, count: int) -> None:
        self._batch = batch
        self._results: list[Any] = []
        self._errors: list[dict[str, Any]] = []
        self._states: dict[str, int] = {"succeeded": 0, "partial": 0, "failed": 0, "canceled": 0}
        with conn.cursor("children") as cursor:
            cursor.itersize = ROWS
            # Their ids are in the items' order. Who has joined the batch since came later.
            cursor.execute(
                """
                select id, state, case when total <= %(most)s then result end, total > %(most)s and result is not null,
                       result_url, errors -> -1 ->> 'message'
                from (select id, state, result, result_url, errors,
                             sum(octet_length(result::text)) over (order by id) as total
                      from dispatcher.job where parent_id = %(batch)s) children
                order by id limit %(count)s
                """,
                {"batch": batch, "count": count, "most": MOST_BYTES},
            )
            for at, row in enumerate(cursor):
                self._add(at, Child(*row))
        if len(self._results) < count:
            raise Fail(
                f"{count - len(self._results)} jobs of batch {batch} were removed before their results were gathered"
            )

    def ending(self, ignore_failures: bool) -> Any:
        """The job's result, or what it raises."""
        count = len(self._results)
        bad = self._states["failed"] + self._states["canceled"]
        result = {
            "batch": self._batch,
            "total": count,
            "succeeded": count - bad,
            "failed": bad,
            "results": self._results,
        }
        if ignore_failures or not self._errors:
            return result
        if self._states["canceled"] == count:
            raise Cancel
        if bad == count:
            first = self._errors[0]["message"]
            raise Fail(f"all {count} jobs failed; to run them again, retry batch {self._batch}; the first: {first}")
        return Partial(result, self._errors)

    def _add(self, at: int, child: Child) -> None:
        self._states[child.state] += 1
        good = child.state in ("succeeded", "partial")
        if good and child.left_out:
            self._results.append({"job": child.id})
        elif good and child.result is None and child.result_url is not None:
            # One that was too large for its row is too large for ours.
            self._results.append({"result_url": child.result_url})
        else:
            self._results.append(child.result if good else None)
        if child.state != "succeeded" and len(self._errors) < MAX_ERRORS:
            message = f"job {child.id} {ENDED[child.state]}{': ' if child.message else ''}{child.message or ''}"
            self._errors.append({"message": message[:MAX_MESSAGE], "item": {"index": at, "job": child.id}})
