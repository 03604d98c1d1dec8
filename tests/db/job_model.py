"""What the promises say becomes of jobs: a model without I/O, one function an operation.

The state machine (test_state_machine.py) does each operation to the database and to this, and compares. `Refused` names
the error that every front door is to raise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

FINAL = ("succeeded", "partial", "failed", "canceled")
AGAIN = ("failed", "partial", "canceled")
UNSTARTED = ("scheduled", "blocked", "pending")
OPEN = (*UNSTARTED, "running")
NewCallback = Callable[[int], int]
"""The id of the callback that a batch, which runs again, was given."""


class Refused(Exception):
    """The operation is an error, and changes nothing."""


@dataclass
class Edge:
    """A predecessor of a job."""

    on_failure: str
    outcome: str | None = None


@dataclass
class Batch:
    """What a batch has beside its own job."""

    callback: tuple[str, Any] | None = None
    callback_id: int | None = None
    cancel_requested: bool = False
    ended: bool = False


@dataclass
class ModelJob:
    """A job as everybody sees it; `errors` are the kinds, `later` is whether its time is still to come."""

    id: int
    type: str
    state: str
    payload: Any
    tenant: str | None = None
    priority: int = 0
    later: bool = False
    unique_key: str | None = None
    max_attempts: int | None = None
    parent: int | None = None
    after: dict[int, Edge] = field(default_factory=dict)
    batch: Batch | None = None
    attempt: int = 0
    failures: int = 0
    errors: list[str] = field(default_factory=list)
    result: Any = None
    cancel_requested: bool = False
    owner: int | None = None


@dataclass
class Schedule:
    """A schedule, which never comes due by itself in these tests."""

    type: str
    payload: Any
    options: dict[str, Any]
    paused: bool = False


@dataclass
class Model:
    """All jobs, and what operators said."""

    jobs: dict[int, ModelJob] = field(default_factory=dict)
    removed: dict[int, ModelJob] = field(default_factory=dict)
    paused: set[str] = field(default_factory=set)
    limits: dict[str, int] = field(default_factory=dict)
    tenant_limits: dict[str, int] = field(default_factory=dict)
    schedules: dict[str, Schedule] = field(default_factory=dict)

    # Enqueueing. `ids` are those that the database gave to new jobs.

    def enqueue(self, ids: Iterable[int], type: str, payload: Any, **options: Any) -> tuple[int, bool]:
        """(id, whether it is new)."""
        key = options.get("unique_key")
        if options.get("parent") and key:
            raise Refused("InvalidOption")
        tenant = self._tenant(options)
        if key and (first := self.holder(type, key)):
            return first.id, False
        self._may_link(tenant, options)
        id = next(iter(ids))
        self._add(id, type, payload, tenant, options)
        return id, True

    def enqueue_many(self, ids: Sequence[int], type: str, payloads: Sequence[Any], **options: Any) -> list[int]:
        """The ids, in order."""
        tenant = self._tenant(options)
        self._may_link(tenant, options)
        for id, payload in zip(ids, payloads, strict=True):
            self._add(id, type, payload, tenant, options)
        return [*ids]

    def enqueue_batch(
        self, id: int, children: Sequence[int], callback_id: int | None, type: str, payloads: Sequence[Any],
        callback: tuple[str, Any] | None, **options: Any,
    ) -> None:  # fmt: skip
        """A batch, its children and its callback."""
        tenant = options.get("tenant")
        self._may_link(tenant, options)
        own = ModelJob(id, "batch", "running", {"type": type}, tenant, options.get("priority", 0), max_attempts=1)
        own.batch = Batch(callback, callback_id)
        self.jobs[id] = own
        for child, payload in zip(children, payloads, strict=True):
            self._add(child, type, payload, tenant, options | {"parent": id})
        if callback is not None:
            assert callback_id is not None
            self._add_callback(own, callback_id)

    def holder(self, type: str, key: str) -> ModelJob | None:
        """The unfinished job that has a unique key."""
        return next((j for j in self.jobs.values() if (j.type, j.unique_key) == (type, key) and j.state in OPEN), None)

    def _tenant(self, options: dict[str, Any]) -> str | None:
        tenant: str | None = options.get("tenant")
        if not (parent := options.get("parent")):
            return tenant
        found = self.jobs.get(parent)
        if found is None or found.batch is None or (tenant and tenant != found.tenant):
            raise Refused("InvalidOption")
        return found.tenant

    def _may_link(self, tenant: str | None, options: dict[str, Any]) -> None:
        if parent := options.get("parent"):
            batch = self.jobs[parent].batch
            assert batch is not None
            if batch.ended or batch.cancel_requested:
                raise Refused("WrongState")
        after = options.get("after") or []
        if any(id not in self.jobs or self.jobs[id].tenant != tenant for id in after):
            raise Refused("InvalidOption")
        if parent and self._waits_for(after, parent):
            raise Refused("InvalidOption")

    def _waits_for(self, ids: Iterable[int], batch: int) -> bool:
        seen, waiting = set[int](), [*ids]
        while waiting:
            id = waiting.pop()
            if id == batch:
                return True
            if id not in seen and id in self.jobs:
                seen.add(id)
                waiting += [*self.jobs[id].after, *(child.id for child in self.children(id))]
        return False

    def _add(self, id: int, type: str, payload: Any, tenant: str | None, options: dict[str, Any]) -> None:
        assert id not in self.jobs
        assert id not in self.removed
        later, after = options.get("later", False), options.get("after") or []
        job = ModelJob(
            id,
            type,
            "blocked" if after else "scheduled" if later else "pending",
            payload,
            tenant,
            options.get("priority", 0),
            later,
            options.get("unique_key"),
            options.get("max_attempts"),
            options.get("parent"),
        )
        job.after = {one: Edge(options.get("on_failure", "cancel")) for one in after}
        self.jobs[id] = job

    def _add_callback(self, batch: ModelJob, id: int) -> None:
        assert batch.batch is not None
        assert batch.batch.callback is not None
        type, payload = batch.batch.callback
        self._add(id, type, payload, batch.tenant, {"after": [batch.id], "on_failure": "run"})
        batch.batch.callback_id = id

    # What people do to jobs.

    def find(self, id: int) -> ModelJob:
        """A job that there is."""
        if id not in self.jobs:
            raise Refused("JobNotFound")
        return self.jobs[id]

    def cancel(self, id: int) -> str:
        """Ends what waits, asks what runs."""
        job = self.find(id)
        if job.batch is not None and not job.batch.ended:
            job.batch.cancel_requested = job.cancel_requested = True
            for child in self.children(id):
                self._stop(child)
        elif job.state in FINAL and job.state != "canceled":
            raise Refused("WrongState")
        else:
            self._stop(job)
        return job.state

    def _stop(self, job: ModelJob) -> None:
        if job.state in UNSTARTED:
            job.state = "canceled"
        elif job.state == "running":
            job.cancel_requested = True

    def retry(self, id: int, new_callback: NewCallback) -> str:
        """Runs it again; of a batch, its failed and canceled jobs. `new_callback` tells the id that one was given."""
        job = self.find(id)
        again = [job]
        if job.batch is not None:
            again = [child for child in self.children(id) if child.state in ("failed", "canceled")]
        if not again or any(one.state not in (*AGAIN, "scheduled") for one in again):
            raise Refused("WrongState")
        self.revive(again, job if job.batch else self.jobs.get(job.parent or 0), new_callback)
        if job.batch is not None:
            job.batch.cancel_requested = job.cancel_requested = False
        return job.state

    def revive(self, again: Sequence[ModelJob], batch: ModelJob | None, new_callback: NewCallback) -> None:
        """Runs these again, all of one batch or of none."""
        if any(one.unique_key and self.holder(one.type, one.unique_key) not in (None, one) for one in again):
            raise Refused("UniqueConflict")
        ended = any(one.state in FINAL for one in again)
        for one in again:
            one.state, one.failures, one.later, one.owner = "pending", 0, False, None
            one.cancel_requested, one.result = False, None
        self._block_again([one.id for one in again])
        if ended and batch is not None and batch.batch is not None and batch.batch.ended:
            self._reopen(batch, new_callback)

    def _reopen(self, job: ModelJob, new_callback: NewCallback) -> None:
        batch = job.batch
        assert batch is not None
        batch.ended = batch.cancel_requested = job.cancel_requested = False
        job.state, job.result = "running", None
        self._block_again([job.id])
        old = self.jobs.get(batch.callback_id or 0)
        if batch.callback is not None and (old is None or old.state != "blocked"):  # it was claimed, or has ended
            self._add_callback(job, new_callback(job.id))

    def retry_where(self, matched: Sequence[ModelJob], new_callback: NewCallback) -> tuple[int, int]:
        """(run again, passed by): those of one batch together, others the newest first."""
        states = {job.id: job.state for job in matched}
        groups: dict[int | None, list[ModelJob]] = {}
        for job in matched:
            if job.batch is None and job.unique_key is None:
                groups.setdefault(job.parent, []).append(job)
        together = [group for group in groups.values() if len(group) > 1]
        for group in together:
            self.revive(group, self.jobs.get(group[0].parent or 0), new_callback)
        done = {job.id for group in together for job in group}
        skipped = 0
        for job in matched:
            if job.id not in done and not (job.batch is not None and job.state == "running"):  # by a job of it
                try:
                    if job.state != states[job.id]:
                        raise Refused("it has changed meanwhile")
                    self.retry(job.id, new_callback)
                except Refused:
                    skipped += 1
        return len(matched) - skipped, skipped

    @staticmethod
    def _waits_again(job: ModelJob) -> bool:
        return job.state in ("pending", "blocked") or (job.state == "scheduled" and job.attempt == 0)

    def _block_again(self, ids: Sequence[int]) -> None:
        for job in self.jobs.values():
            if self._waits_again(job) and (job.id in ids or job.after.keys() & set(ids)):
                unfinished = [id for id in job.after if id in self.jobs and self.jobs[id].state in OPEN]
                for id in unfinished:
                    job.after[id].outcome = None
                if unfinished:
                    job.state = "blocked"

    def matching(self, states: Sequence[str], type: str | None, tenant: str | None, kind: str | None) -> list[ModelJob]:
        """Ended jobs, the newest first."""
        return [
            job
            for _, job in sorted(self.jobs.items(), reverse=True)
            if job.state in states
            and type in (None, job.type)
            and tenant in (None, job.tenant)
            and (kind is None or job.errors[-1:] == [kind])
        ]

    def removable(self, job: ModelJob) -> bool:
        """Not what an open batch counts or an unfinished job may read."""
        parent = self.jobs.get(job.parent or 0)
        still_open = parent is not None and parent.batch is not None and not parent.batch.ended
        read = any(job.id in other.after and other.state in OPEN for other in self.jobs.values())
        return job.state in FINAL and not still_open and not read

    def remove(self, jobs: Sequence[ModelJob]) -> None:
        """Purged, or past their retention."""
        for job in jobs:
            self.removed[job.id] = self.jobs.pop(job.id)
            for other in self.jobs.values():
                if (edge := other.after.get(job.id)) and edge.outcome is None:
                    edge.outcome = job.state

    # What the daemon does.

    def due(self, id: int) -> None:
        """Its time has come."""
        self.jobs[id].later = False

    def promote(self) -> None:
        """What is due becomes pending."""
        for job in self.jobs.values():
            if job.state == "scheduled" and not job.later:
                job.state = "pending"

    def claim(self, id: int, owner: int) -> None:
        """Pending becomes running."""
        job = self.jobs[id]
        assert job.state == "pending", f"job {id} was {job.state}"
        job.state, job.owner, job.attempt = "running", owner, job.attempt + 1

    def settle(
        self, id: int, attempt: int, became: str, *, failed: bool = False, kinds: Sequence[str] = (), result: Any = None
    ) -> bool:
        """An attempt ended; False, and no change, if it is not the running one. `became` scheduled is after a pause."""
        job = self.jobs.get(id)
        if job is None or (job.state, job.attempt) != ("running", attempt):
            return False
        job.failures += failed
        job.errors += kinds
        if became in FINAL:
            job.state, job.result = became, result
        else:
            job.state, job.owner = "canceled" if job.cancel_requested else became, None
            job.later = became == "scheduled"
        return True

    def link(self) -> None:
        """All that follows from what has ended."""
        while any([*map(self._follow, list(self.jobs.values()))]):
            pass

    def _follow(self, job: ModelJob) -> bool:
        for id, edge in job.after.items():
            if edge.outcome is None and (id not in self.jobs or self.jobs[id].state in FINAL):
                edge.outcome = self.jobs[id].state if id in self.jobs else "canceled"
        if job.state == "blocked":
            return self._let_go(job)
        if job.batch is not None and not job.batch.ended and not any(self.counts(job.id)[state] for state in OPEN):
            self._end(job, job.batch)
            return True
        return False

    def _let_go(self, job: ModelJob) -> bool:
        if any(e.on_failure == "cancel" and e.outcome in ("failed", "canceled") for e in job.after.values()):
            job.state = "canceled"
            job.errors.append("dependency")
        elif all(edge.outcome for edge in job.after.values()):
            job.state = "scheduled" if job.later else "pending"
        return job.state != "blocked"

    def _end(self, job: ModelJob, batch: Batch) -> None:
        n = self.counts(job.id)
        total = n.total()
        if n["canceled"] and (batch.cancel_requested or n["canceled"] == total):
            job.state = "canceled"
        elif n["succeeded"] == total:
            job.state = "succeeded"
        else:
            job.state = "partial" if n["succeeded"] + n["partial"] else "failed"
        job.result = {"total": total} | {state: n[state] for state in FINAL}
        if n["failed"] + n["canceled"]:
            job.errors.append("batch")
        batch.ended = True

    # What can be seen.

    def children(self, id: int) -> list[ModelJob]:
        """Those that are still there."""
        return [job for job in self.jobs.values() if job.parent == id]

    def counts(self, id: int) -> Counter[str]:
        """By state, with those that were removed."""
        return Counter(j.state for j in (*self.jobs.values(), *self.removed.values()) if j.parent == id)

    def running(self, type: str, tenant: str | None = None) -> int:
        """How many run, of a type or of one tenant of it."""
        jobs = [job for job in self.jobs.values() if job.state == "running" and job.type == type]
        return sum(tenant in (None, job.tenant) for job in jobs)

    def room(self, type: str, tenant: str | None) -> bool:
        """Whether one more of a lane may start."""
        if type in self.paused:
            return False
        free = self.running(type) < self.limits.get(type, 1_000_000)
        most = self.tenant_limits.get(type)
        return free and (tenant is None or most is None or self.running(type, tenant) < most)
