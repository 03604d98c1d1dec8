"""The Dask cluster as one owner of jobs sees it: which workers there are, and how long its jobs there may live.

    _attend ─word─▶ attend        "your clock said w; my jobs may live until w + x"
            ◀answer─              "my clock says w"                     (dispatcher/pools/dask_worker.py)

A job may live while its owner is trusted (services/lease.py) and so long after as nobody takes its jobs. The owner
knows when it heard a worker's clock, and when the lease session last proved itself; so it can say how long after that
reading of the worker's own clock the jobs may live, and no clocks are compared. What is lost from sight is waited for
until it is dead: confirmed by its worker, or by the last word that was sent there having run out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from distributed import Client

from dispatcher.context import Context
from dispatcher.fence import boottime
from dispatcher.pools.dask_worker import Answer, Word, attend
from dispatcher.pools.messages import Attempt, FromWorker

log = logging.getLogger("dispatcher.pool")

MARGIN = 0.05  # of orphan_after, as the fence of this process has it
SLACK_S = 0.3  # past the last word's end: until a supervisor has killed everything
CONNECT_S = 10.0
AGAIN_S = 1.0  # between tries to connect


class Member:
    """A worker process of the cluster."""

    def __init__(self, address: str, threads: int) -> None:
        self.address = address
        self.threads = threads
        self.jobs: dict[Attempt, Context] = {}
        self.nonce: str | None = None  # None until it has answered
        self.suspect = False  # it did not answer the latest word
        self.heard: tuple[float, float] | None = None  # its clock, and ours when we heard that
        self.gone = asyncio.Event()
        self.woken = asyncio.Event()

    @property
    def free(self) -> int:
        """How many more jobs it may have."""
        return 0 if self.nonce is None or self.suspect or self.gone.is_set() else self.threads - len(self.jobs)


class Cluster:
    """Follows the cluster whose scheduler is at `address`; everything in it happens on one event loop.

    `heard` is given what a worker tells of an attempt, `resized` how many threads the workers have that answer.
    """

    def __init__(
        self,
        *,
        address: str,
        owner: str,
        orphan_after_s: float,
        trusted_from: Callable[[], float | None],
        heard: Callable[[Attempt, list[FromWorker]], None],
        resized: Callable[[int], None],
    ) -> None:
        self.client: Client | None = None
        """While the scheduler is there."""
        self.members: dict[str, Member] = {}
        self.change = asyncio.Event()
        """Set when a place came free, or a worker came."""
        self.beat_s = min(1.0, orphan_after_s / 20)
        self._address = address
        self._owner = owner
        self._life_s = orphan_after_s * (1 - MARGIN)
        self._trusted_from = trusted_from
        self._heard = heard
        self._resized = resized
        self._attending: set[asyncio.Task[None]] = set()  # the loop itself holds them only weakly
        # By the worker process, whatever its address: until when any word sent there lets jobs live, on our clock, and
        # which attempts there are to die for certain.
        self._alive_until: dict[str, float] = {}
        self._graves: dict[str, dict[Attempt, asyncio.Event]] = {}

    async def serve(self) -> None:
        """Looks for the cluster again and again, and follows it while it is there."""
        said = False
        while True:
            try:
                client = Client(
                    self._address, asynchronous=True, set_as_default=False, timeout=CONNECT_S, name="dispatcher"
                )
                try:
                    async with client:
                        self.client, said = client, False
                        log.info("connected to the Dask scheduler", extra={"address": self._address})
                        await self._follow(client)
                finally:
                    with suppress(Exception):  # one that did not connect was not closed
                        await client.close()
            except Exception as exc:  # noqa: BLE001 - whatever Dask raises: it is tried again
                if not said:
                    log.warning("no Dask scheduler at %s: %s", self._address, str(exc) or repr(exc))
                said = True
            finally:
                self.client = None
                self._note_members({})
            await asyncio.sleep(AGAIN_S)

    def life_of(self, member: Member) -> float | None:
        """Until when our jobs may live, on the worker's clock. None while something there is to die for certain."""
        trusted = self._trusted_from()
        if trusted is None or member.heard is None or member.nonce is None:
            return None
        if member.suspect or member.nonce in self._graves:
            return None
        theirs, ours = member.heard
        until = trusted + self._life_s
        self._alive_until[member.nonce] = max(until, self._alive_until.get(member.nonce, 0.0))
        return theirs + until - ours

    async def bury(self, nonce: str, key: Attempt) -> None:
        """Until nothing of the attempt runs for certain. No word lets jobs of that process live longer meanwhile."""
        graves = self._graves.setdefault(nonce, {})
        grave = graves[key] = asyncio.Event()
        for member in self.members.values():
            member.woken.set()
        try:
            while not grave.is_set() and not self._over(nonce):
                with suppress(TimeoutError):
                    await asyncio.wait_for(grave.wait(), SLACK_S)
        finally:
            del graves[key]
            if not graves:
                del self._graves[nonce]

    async def _follow(self, client: Client) -> None:
        """Until the scheduler is gone."""
        while client.status == "running":
            with suppress(TimeoutError):  # it is slow; the client sees where the connection is lost
                self._note_members(dict(await asyncio.wait_for(client.nthreads(), CONNECT_S)))
            await asyncio.sleep(self.beat_s)

    def _note_members(self, threads: dict[str, int]) -> None:
        self._alive_until = {nonce: until for nonce, until in self._alive_until.items() if not self._over(nonce)}
        for address in set(self.members) - set(threads):
            self._drop(self.members[address])
        for address in set(threads) - set(self.members):
            member = self.members[address] = Member(address, threads[address])
            attending = asyncio.get_running_loop().create_task(self._attend(member))
            self._attending.add(attending)
            attending.add_done_callback(self._attending.discard)
        self._resize()

    def _drop(self, member: Member) -> None:
        member.gone.set()
        member.woken.set()
        if self.members.get(member.address) is member:
            del self.members[member.address]
        self._resize()

    def _resize(self) -> None:
        self._resized(sum(member.threads for member in self.members.values() if member.nonce is not None))

    async def _attend(self, member: Member) -> None:
        while not member.gone.is_set() and (client := self.client) is not None:
            member.woken.clear()
            try:
                answer = await self._ask(client, member)
                member.suspect = False
                self._hear(member, answer)
            except Exception as exc:  # noqa: BLE001 - whatever Dask raises: this worker cannot be asked now
                self._doubt(member, exc)
            with suppress(TimeoutError):
                await asyncio.wait_for(member.woken.wait(), self.beat_s)

    async def _ask(self, client: Client, member: Member) -> Answer:
        cancel = [(key, ctx.canceled) for key, ctx in member.jobs.items() if ctx.canceled is not None]
        revoke = list(self._graves.get(member.nonce or "", ()))
        word = Word(self._owner, member.nonce, self.life_of(member), cancel, revoke)
        asked = client.run(attend, word, workers=[member.address], on_error="return")
        answer = (await asyncio.wait_for(asked, max(1.0, 5 * self.beat_s)))[member.address]
        if not isinstance(answer, Answer):
            raise answer if isinstance(answer, Exception) else TypeError(repr(answer))
        return answer

    def _doubt(self, member: Member, exc: Exception) -> None:
        if not member.suspect:
            log.warning("a Dask worker does not answer: %r", exc, extra={"worker": member.address})
        member.suspect = True
        # It gets no word any more that lets its jobs live, so they will be over, whatever Dask believes of the worker.
        if member.nonce is not None and self._over(member.nonce):
            self._drop(member)

    def _over(self, nonce: str) -> bool:
        return boottime() > self._alive_until.get(nonce, 0.0) + SLACK_S

    def _hear(self, member: Member, answer: Answer) -> None:
        if member.nonce is None:
            member.nonce = answer.nonce
            self._resize()
            self.change.set()
        if member.nonce != answer.nonce:  # another process at the same address
            self._drop(member)
            return
        # Ours is read after theirs: what we count from is never later than theirs.
        member.heard = (answer.now, boottime())
        for key in answer.buried:
            if (grave := self._graves.get(answer.nonce, {}).get(key)) is not None:
                grave.set()
        for key, news in answer.news:
            self._heard(key, news)
