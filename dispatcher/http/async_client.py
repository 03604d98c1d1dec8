"""AsyncClient: the Client's methods with await; what they do is written once, in dispatcher.http.jobs and control."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any, Unpack, overload

import httpx

from dispatcher.batch import BatchInfo, Callback
from dispatcher.filters import Wanted
from dispatcher.front.control import UNCHANGED, Unchanged
from dispatcher.front.ended import States, Time
from dispatcher.http.events import Event, EventReader
from dispatcher.http.sender import AsyncSender
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


class AsyncClient(AsyncSender):
    """As Client, for one event loop: its tasks may share it."""

    async def enqueue(self, type: str, payload: Any = None, **options: Unpack[Options]) -> int:
        """As Client.enqueue."""
        return (await self.enqueue_unique(type, payload, **options))[0]

    async def enqueue_unique(self, type: str, payload: Any = None, **options: Unpack[Options]) -> tuple[int, bool]:
        """As Client.enqueue_unique."""
        return await self._do(self._jobs.enqueue(type, payload, options))

    async def enqueue_many(self, type: str, payloads: Iterable[Any], **options: Unpack[Options]) -> list[int]:
        """As Client.enqueue_many."""
        return await self._do(self._jobs.enqueue_many(type, payloads, options))

    async def enqueue_many_unique(
        self, type: str, payloads: Iterable[Any], unique_keys: Sequence[str | None], **options: Unpack[Options]
    ) -> list[tuple[int, bool]]:
        """As Client.enqueue_many_unique."""
        return await self._do(self._jobs.enqueue_many_unique(type, payloads, unique_keys, options))

    async def batch(
        self, type: str, payloads: Iterable[Any], *, callback: str | Callback | None = None, **options: Unpack[Options]
    ) -> int:
        """As Client.batch."""
        return await self._do(self._jobs.batch(type, payloads, callback, options))

    async def get_batch(self, id: int) -> BatchInfo:
        """As Client.get_batch."""
        return await self._do(self._jobs.get_batch(id))

    async def get(self, id: int) -> JobInfo:
        """As Client.get."""
        return await self._do(self._jobs.get(id))

    async def result(self, id: int) -> Any:
        """As Client.result."""
        job = await self._do(self._jobs.result(id))
        if job.result_url is None:
            return job.result
        return await asyncio.to_thread(load_result, job.result, job.result_url)

    @overload
    async def wait(self, id: int, timeout: Duration | None = None) -> JobInfo: ...
    @overload
    async def wait(self, id: Sequence[int], timeout: Duration | None = None) -> Infos: ...
    async def wait(self, id: int | Sequence[int], timeout: Duration | None = None) -> JobInfo | Infos:
        """Waits until the job, or all of the jobs, ended in any way. Raises TimeoutError, JobNotFound."""
        ended = await self._do(self._jobs.wait([id] if isinstance(id, int) else id, timeout))
        return ended[0] if isinstance(id, int) else ended

    async def cancel(self, id: int) -> str:
        """As Client.cancel."""
        return await self._do(self._jobs.cancel(id))

    async def retry(self, id: int) -> str:
        """As Client.retry."""
        return await self._do(self._jobs.retry(id))

    async def explain(self, id: int) -> Explanation:
        """As Client.explain."""
        return await self._do(self._jobs.explain(id))

    async def events(self, id: int) -> AsyncGenerator[Event, None]:
        """As Client.events. Whoever leaves it early closes the stream with contextlib.aclosing."""
        reader = EventReader(id)
        while not reader.over:
            try:
                async with await self._open(reader.request()) as response:
                    async for line in response.aiter_lines():
                        if event := reader.take(line):
                            yield event
            except httpx.TransportError:
                pass  # not while it connects: then there are no more retries
            if not reader.over:
                await asyncio.sleep(reader.pause_s)

    async def types(self) -> Types:
        """As Client.types."""
        return await self._do(self._control.types())

    async def pause(self, type: str) -> bool:
        """As Client.pause."""
        return await self._do(self._control.pause(type))

    async def resume(self, type: str) -> bool:
        """As Client.resume."""
        return await self._do(self._control.resume(type))

    async def set_limit(
        self,
        type: str,
        *,
        limit: int | Unchanged | None = UNCHANGED,
        tenant_limit: int | Unchanged | None = UNCHANGED,
        rate: float | str | Unchanged | None = UNCHANGED,
        burst: int | Unchanged | None = UNCHANGED,
        tenant: str | None = None,
    ) -> None:
        """As Client.set_limit."""
        given = {"limit": limit, "tenant_limit": tenant_limit, "rate": rate, "burst": burst}
        await self._do(self._control.set_limit(type, given, tenant))

    async def schedules(self) -> Schedules:
        """As Client.schedules."""
        return await self._do(self._control.schedules())

    async def add_schedule(
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
        """As Client.add_schedule."""
        await self._do(self._control.add_schedule(name, cron, type, payload, zone, catch_up, options))

    async def remove_schedule(self, name: str) -> None:
        """As Client.remove_schedule."""
        await self._do(self._control.remove_schedule(name))

    async def pause_schedule(self, name: str) -> bool:
        """As Client.pause_schedule."""
        return await self._do(self._control.pause_schedule(name))

    async def resume_schedule(self, name: str) -> bool:
        """As Client.resume_schedule."""
        return await self._do(self._control.resume_schedule(name))

    async def trigger_schedule(self, name: str) -> int:
        """As Client.trigger_schedule."""
        return await self._do(self._control.trigger_schedule(name))

    async def stats(self, tenant: str | None = None) -> Stats:
        """As Client.stats."""
        return await self._do(self._control.stats(tenant))

    async def replicas(self) -> Replicas:
        """As Client.replicas."""
        return await self._do(self._control.replicas())

    async def leader(self, lease: str = "default") -> LeaderInfo | None:
        """As Client.leader."""
        return await self._do(self._control.leader(lease))

    async def page(
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
        """As Client.page."""
        wanted = Wanted.make(type=type, state=state, tenant=tenant, kind=kind, since=since, until=until, parent=parent)
        return await self._do(self._jobs.page(wanted, before=before, limit=limit))

    # The last public method, since from here on `list` means this one.
    async def list(
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
        """As Client.list."""
        wanted = Wanted.make(type=type, state=state, tenant=tenant, kind=kind, since=since, until=until, parent=parent)
        return await self._do(self._jobs.list(wanted, before=before, limit=limit))
