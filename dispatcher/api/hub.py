"""Tells subscribers of a job what becomes of it: one listening session for all of them.

Replicas that are told `watch` notify of the jobs that they claim and settle, for half a minute. A notification may be
lost and some changes are told by nobody (a cancel by SQL, a retry that falls due), so all that is watched is also
looked at each second. What is delivered is the state as it is now, so a slow subscriber misses steps, not the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
from psycopg import sql

from dispatcher import connecting
from dispatcher.api.database import Connection, Database, end
from dispatcher.errors import DispatcherError
from dispatcher.job import FINAL
from dispatcher.queries.operation import ask_async
from dispatcher.queries.serving import Progress, ask_for_events, get_progress
from dispatcher.trouble import Trouble

CHANNEL = "dispatcher_events"
EVERYTHING = "*"
LOOK_EVERY_S = 1.0
WATCH_EVERY_S = 10.0
GATHER_S = 0.01  # notifications that come so close together cost one look
CHUNK = 1_000

log = logging.getLogger("dispatcher.api")


@dataclass(slots=True, eq=False)
class Subscription:
    """One subscriber of one job; `latest` is None until the first look, `gone` once the job exists no more."""

    job_id: int
    changed: asyncio.Event
    latest: Progress | None = None
    gone: bool = False

    @property
    def over(self) -> bool:
        """True once nothing can come any more."""
        return self.gone or (self.latest is not None and self.latest.state in FINAL)


def stamp(progress: Progress) -> str:
    """Names what a subscriber has seen; the same for the same."""
    return hashlib.blake2b(repr(progress).encode(), digest_size=8).hexdigest()


class Hub:
    """For the tasks of one event loop."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._trouble = Trouble("the session for events", log=log)
        self._subscribers: dict[int, set[Subscription]] = {}
        self._dirty: set[int] = set()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.closing = asyncio.Event()
        """Set when the server stops: whoever waits or streams comes to an end."""

    def open(self) -> None:
        """Begins to look and to listen, once somebody subscribes."""
        self._tasks = [
            asyncio.create_task(self._keep_looking(), name="hub look"),
            asyncio.create_task(self._keep_listening(), name="hub listen"),
        ]

    async def close(self) -> None:
        """Ends it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @contextlib.contextmanager
    def subscribe(self, job_id: int) -> Iterator[Subscription]:
        """A subscription, looked at at once."""
        subscription = Subscription(job_id, asyncio.Event())
        self._subscribers.setdefault(job_id, set()).add(subscription)
        self.look(job_id)
        try:
            yield subscription
        finally:
            others = self._subscribers[job_id]
            others.discard(subscription)
            if not others:
                del self._subscribers[job_id]

    def look(self, *job_ids: int) -> None:
        """These may have changed."""
        self._dirty.update(job_ids)
        self._wake.set()

    async def wait(self, subscription: Subscription, seconds: float) -> bool:
        """True if something changed in so many seconds, or it is time to stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await subscription.changed.wait()
        changed = subscription.changed.is_set()
        subscription.changed.clear()
        return changed

    def stop(self) -> None:
        """Lets everybody who waits come to an end."""
        self.closing.set()
        for subscription in self._all():
            subscription.changed.set()

    def _all(self) -> list[Subscription]:
        return [one for group in self._subscribers.values() for one in group]

    async def _keep_looking(self) -> None:
        loop = asyncio.get_running_loop()
        net, watch = loop.time() + LOOK_EVERY_S, 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, net - loop.time()) if self._subscribers else None):
                    await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(GATHER_S)
            if loop.time() >= net:
                wanted, net = set(self._subscribers), loop.time() + LOOK_EVERY_S
                self._dirty.clear()
            else:
                wanted, self._dirty = self._dirty & self._subscribers.keys(), set()
            try:
                if self._subscribers and loop.time() >= watch:
                    await self._db.run(ask_for_events())
                    watch = loop.time() + WATCH_EVERY_S
                await self._look(sorted(wanted))
            except DispatcherError:  # the database is away: the net looks again
                net = min(net, loop.time() + LOOK_EVERY_S)

    async def _look(self, ids: list[int]) -> None:
        for start in range(0, len(ids), CHUNK):
            part = ids[start : start + CHUNK]
            found = {one.id: one for one in await self._db.run(get_progress(part))}
            for id in part:
                for subscription in self._subscribers.get(id, ()):
                    now = found.get(id)
                    if now is None or now != subscription.latest:
                        subscription.latest, subscription.gone = now or subscription.latest, now is None
                        subscription.changed.set()

    async def _keep_listening(self) -> None:
        while True:
            conn: Connection | None = None
            try:
                if self._db.away is None:
                    conn = await self._db.session("api events")
                    if not connecting.is_direct(conn, await ask_async(conn, connecting.BACKEND)):
                        # The LISTEN would stay with a session that a pooler lends to others.
                        log.info("behind a pooler nothing is listened to: who follows a job hears within a second")
                        return
                    await self._listen(conn)
            except (psycopg.Error, DispatcherError, OSError) as exc:
                self._trouble.note(exc)
            finally:
                if conn is not None:
                    await end(conn)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _listen(self, conn: Connection) -> None:
        await conn.execute(sql.SQL("listen {}").format(sql.Identifier(CHANNEL)))
        self.look(*self._subscribers)  # what was told while nobody listened
        while self._db.away is None:
            async for notification in conn.notifies(timeout=LOOK_EVERY_S):
                self._hear(notification.payload)

    def _hear(self, payload: str) -> None:
        if payload == EVERYTHING:
            self.look(*self._subscribers)
        else:
            self.look(*(int(id) for id in payload.split(",") if id.isdecimal()))
