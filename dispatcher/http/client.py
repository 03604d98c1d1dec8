"""Client: the methods of dispatcher.Client over HTTP, from blocking code and any thread."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Sequence
from typing import Any, Unpack, overload

import httpx

from dispatcher.batch import BatchInfo, Callback
from dispatcher.filters import Wanted
from dispatcher.front.control import UNCHANGED, Unchanged
from dispatcher.front.ended import States, Time
from dispatcher.http.events import Event, EventReader
from dispatcher.http.sender import Sender
from dispatcher.job import JobInfo, Page
from dispatcher.options import Duration, Options
from dispatcher.queries.explain import Explanation
from dispatcher.queries.fleet import LeaderInfo, ReplicaInfo, TypeInfo
from dispatcher.queries.schedules import ScheduleInfo
from dispatcher.queries.stats import TypeStats
from dispatcher.store import load_result

Infos = list[JobInfo]
Types = list[TypeInfo]
Schedules = list[ScheduleInfo]
Replicas = list[ReplicaInfo]
Stats = list[TypeStats]


class Client(Sender):
    """Talks to `dispatcher api` at `url`, known to it by `token`; else by DISPATCHER_API_URL and DISPATCHER_API_TOKEN.

    Any number of threads may share it. `timeout`: seconds to connect, and without a sign of an answer. What is lost on
    the way, or refused for the moment (429, 503), is sent again up to `retries` times within a minute; nothing is done
    twice by that. Every method raises ApiUnavailable where the API cannot be reached, DatabaseUnavailable where its
    database cannot, AccessDenied where the token may not do it. It has no `conn`: a job that belongs into a transaction
    of the caller's needs dispatcher.Client. What else it has not: see dispatcher.http.
    """

    def enqueue(self, type: str, payload: Any = None, **options: Unpack[Options]) -> int:
        """Enqueues a job; returns its id. See dispatcher.Client.enqueue, also for the options and the errors."""
        return self.enqueue_unique(type, payload, **options)[0]

    def enqueue_unique(self, type: str, payload: Any = None, **options: Unpack[Options]) -> tuple[int, bool]:
        """As enqueue; returns (id, whether it is a new job)."""
        return self._do(self._jobs.enqueue(type, payload, options))

    def enqueue_many(self, type: str, payloads: Iterable[Any], **options: Unpack[Options]) -> list[int]:
        """Enqueues one job a payload, all or none, at most 10,000; ids in their order. Errors count payloads from 1."""
        return self._do(self._jobs.enqueue_many(type, payloads, options))

    def enqueue_many_unique(
        self, type: str, payloads: Iterable[Any], unique_keys: Sequence[str | None], **options: Unpack[Options]
    ) -> list[tuple[int, bool]]:
        """As enqueue_many, with a unique key (or None) for each payload: (id, whether it is a new job) in their order.

        The server tells how many are new; which ones is told by their ids. Only where another caller enqueues the same
        keys at the same moment may one that it has added be taken for one of ours.
        """
        return self._do(self._jobs.enqueue_many_unique(type, payloads, unique_keys, options))

    def batch(
        self, type: str, payloads: Iterable[Any], *, callback: str | Callback | None = None, **options: Unpack[Options]
    ) -> int:
        """Enqueues up to 10,000 jobs as the children of a new batch; returns its id. See dispatcher.Client.batch."""
        return self._do(self._jobs.batch(type, payloads, callback, options))

    def get_batch(self, id: int) -> BatchInfo:
        """The batch as it is now, with exact counts. Raises JobNotFound."""
        return self._do(self._jobs.get_batch(id))

    def get(self, id: int) -> JobInfo:
        """The job as it is now. Raises JobNotFound."""
        return self._do(self._jobs.get(id))

    def result(self, id: int) -> Any:
        """The result of a job that succeeded or is partial, also a large one that is in the store.

        The store is read from here. Raises JobFailed; WrongState before its end; StoreError where it cannot be read.
        """
        job = self._do(self._jobs.result(id))
        return load_result(job.result, job.result_url)

    @overload
    def wait(self, id: int, timeout: Duration | None = None) -> JobInfo: ...
    @overload
    def wait(self, id: Sequence[int], timeout: Duration | None = None) -> Infos: ...
    def wait(self, id: int | Sequence[int], timeout: Duration | None = None) -> JobInfo | Infos:
        """Waits until the job, or all of the jobs, ended in any way. Raises TimeoutError, JobNotFound."""
        ended = self._do(self._jobs.wait([id] if isinstance(id, int) else id, timeout))
        return ended[0] if isinstance(id, int) else ended

    def cancel(self, id: int) -> str:
        """`canceled`, or `running` if it was asked to stop. Raises JobNotFound; WrongState after its end."""
        return self._do(self._jobs.cancel(id))

    def retry(self, id: int) -> str:
        """Runs an ended job again, or a scheduled one at once; returns the state. See dispatcher.Client.retry."""
        return self._do(self._jobs.retry(id))

    def explain(self, id: int) -> Explanation:
        """Why the job does not run. See dispatcher.Client.explain. Raises JobNotFound."""
        return self._do(self._jobs.explain(id))

    def events(self, id: int) -> Generator[Event, None, None]:
        """("state" or "progress", what the job is like then) as it happens, until the job has ended.

        The first one tells how it is now. Connects again after a loss; a slow reader misses steps, not the end. The
        data: id, state, attempt, progress, progress_message, cancel_requested. Raises JobNotFound.
        """
        reader = EventReader(id)
        while not reader.over:
            try:
                with self._open(reader.request()) as response:
                    for line in response.iter_lines():
                        if event := reader.take(line):
                            yield event
            except httpx.TransportError:
                pass  # not while it connects: then there are no more retries
            if not reader.over:
                time.sleep(reader.pause_s)

    def types(self) -> Types:
        """The types that replicas have published."""
        return self._do(self._control.types())

    def pause(self, type: str) -> bool:
        """Lets no job of the type start any more. False if it was paused already. Raises UnknownType."""
        return self._do(self._control.pause(type))

    def resume(self, type: str) -> bool:
        """Lets jobs of the type start again. False if it was not paused. Raises UnknownType."""
        return self._do(self._control.resume(type))

    def set_limit(
        self,
        type: str,
        *,
        limit: int | Unchanged | None = UNCHANGED,
        tenant_limit: int | Unchanged | None = UNCHANGED,
        rate: float | str | Unchanged | None = UNCHANGED,
        burst: int | Unchanged | None = UNCHANGED,
        tenant: str | None = None,
    ) -> None:
        """Changes what is given; None gives way to what the code says. See dispatcher.Client.set_limit."""
        given = {"limit": limit, "tenant_limit": tenant_limit, "rate": rate, "burst": burst}
        self._do(self._control.set_limit(type, given, tenant))

    def schedules(self) -> Schedules:
        """All schedules, by name, with their next and their last due time."""
        return self._do(self._control.schedules())

    def add_schedule(
        self,
        name: str,
        cron: str,
        type: str,
        payload: Any = None,
        *,
        zone: str = "UTC",
        catch_up: str = "one",
        **options: Unpack[Options],
    ) -> None:
        """Adds a schedule, or changes the one of this name. See dispatcher.Client.add_schedule."""
        self._do(self._control.add_schedule(name, cron, type, payload, zone, catch_up, options))

    def remove_schedule(self, name: str) -> None:
        """Removes a schedule; its jobs stay. Raises ScheduleNotFound."""
        self._do(self._control.remove_schedule(name))

    def pause_schedule(self, name: str) -> bool:
        """Fires it no more. False if it was paused already. Raises ScheduleNotFound."""
        return self._do(self._control.pause_schedule(name))

    def resume_schedule(self, name: str) -> bool:
        """Goes on from now. False if it went on. Raises ScheduleNotFound."""
        return self._do(self._control.resume_schedule(name))

    def trigger_schedule(self, name: str) -> int:
        """Enqueues its job now, paused or not; the job's id. Raises ScheduleNotFound."""
        return self._do(self._control.trigger_schedule(name))

    def stats(self, tenant: str | None = None) -> Stats:
        """What was settled in the last minute, hour and day, by type. See dispatcher.Client.stats."""
        return self._do(self._control.stats(tenant))

    def replicas(self) -> Replicas:
        """The daemons, living or just gone."""
        return self._do(self._control.replicas())

    def leader(self, lease: str = "default") -> LeaderInfo | None:
        """Who leads right now, or None."""
        return self._do(self._control.leader(lease))

    def page(
        self,
        *,
        type: str | None = None,
        state: States = None,
        tenant: str | None = None,
        kind: str | None = None,
        since: Time = None,
        until: Time = None,
        parent: int | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> Page:
        """One page of jobs, the newest first, of up to 500; `next` is the `before` of more. See dispatcher.Client.page.

        How long ago `since` and `until` are is counted from this host's clock.
        """
        wanted = Wanted.make(type=type, state=state, tenant=tenant, kind=kind, since=since, until=until, parent=parent)
        return self._do(self._jobs.page(wanted, before=before, limit=limit))

    # The last public method, since from here on `list` means this one.
    def list(
        self,
        *,
        type: str | None = None,
        state: States = None,
        tenant: str | None = None,
        before: int | None = None,
        limit: int = 50,
        kind: str | None = None,
        since: Time = None,
        until: Time = None,
        parent: int | None = None,
    ) -> Infos:
        """Jobs, the newest first, over as many pages as it takes. See dispatcher.Client.list."""
        wanted = Wanted.make(type=type, state=state, tenant=tenant, kind=kind, since=since, until=until, parent=parent)
        return self._do(self._jobs.list(wanted, before=before, limit=limit))
