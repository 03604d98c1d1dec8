"""The pool on a Dask cluster: this process keeps futures, the jobs run on the cluster's workers.

    loop: _run ─task─▶ scheduler ─▶ worker: guard ─▶ the job's own process
          _attend ◀──────── every second ──────▶ attend
             "your clock said w; my jobs may live until w + x"        (dispatcher/pools/dask_worker.py)

A job may live while its owner is trusted (services/lease.py) and so long after as nobody takes its jobs. The owner
knows when it heard a worker's clock, and when the lease session last proved itself; so it can say how long after that
reading of the worker's own clock the jobs may live, and no clocks are compared.

Tasks are bound to a worker, else Dask would run them again elsewhere when it loses sight of one. What was lost from
sight is waited for until it is dead: confirmed by its worker, or by the last word that was sent there having run out.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import secrets
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import UUID

from distributed import Client, Future

from dispatcher.context import Context, Interrupted
from dispatcher.fence import boottime
from dispatcher.inflight import Execution, InFlight
from dispatcher.outcome import Crash, NeverBegan, Outcome, Raised, Returned
from dispatcher.pools.attempt import Attempts, job_of, without_payload
from dispatcher.pools.dask_worker import Answer, Ended, Task, Word, attend, guard
from dispatcher.pools.loop import LoopPool
from dispatcher.pools.messages import Attempt, Order
from dispatcher.pools.news import START_S, pass_on

log = logging.getLogger("dispatcher.pool")

MARGIN = 0.05  # of orphan_after, as the fence of this process has it
SLACK_S = 0.3  # past the last word's end: until a supervisor has killed everything
KILL_AFTER_S = 5.0  # from asking a job to stop, as in the process pool
CONNECT_S = 10.0
AGAIN_S = 1.0  # between tries to connect, or to run what was refused
PLACE_S = 5.0  # a job for which there is no place for so long is given back: the cluster has become smaller


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


class DaskPool(LoopPool):
    """Runs executions on the cluster whose scheduler is at `address`; `size` 0 means as many as it has threads."""

    remote = True

    def __init__(
        self,
        *,
        address: str,
        size: int,
        orphan_after_s: float,
        trusted_from: Callable[[], float | None],
        installation: UUID,
        inflight: InFlight,
        attempts: Attempts,
        ended: Callable[[Execution], None],
        kill_after_s: float = KILL_AFTER_S,
    ) -> None:
        super().__init__(name="dask", size=0, inflight=inflight, attempts=attempts, ended=ended)
        self._address = address
        self._most = size
        self._life_s = orphan_after_s * (1 - MARGIN)
        self._beat_s = min(1.0, orphan_after_s / 20)
        self._trusted_from = trusted_from
        self._installation = installation
        self._kill_after_s = kill_after_s
        self._owner = secrets.token_hex(8)
        self._members: dict[str, Member] = {}
        # By the worker process, whatever its address: until when any word sent there lets jobs live, on our clock, and
        # which attempts there are to die for certain.
        self._alive_until: dict[str, float] = {}
        self._graves: defaultdict[str, dict[Attempt, asyncio.Event]] = defaultdict(dict)
        self._executions: dict[Attempt, Execution] = {}
        self._client: Client | None = None
        self._change = asyncio.Event()  # a place became free, or a worker came

    def start(self) -> None:
        """Looks for the cluster, in the background; until it is found, no job is claimed for it."""
        self._loop.call_soon_threadsafe(lambda: self._spawn(self._serve_cluster()))

    # The cluster: who is there.

    async def _serve_cluster(self) -> None:
        said = False
        while True:
            try:
                client = Client(
                    self._address, asynchronous=True, set_as_default=False, timeout=CONNECT_S, name="dispatcher"
                )
                try:
                    async with client:
                        self._client, said = client, False
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
                self._client = None
                self._note_members({})
            await asyncio.sleep(AGAIN_S)

    async def _follow(self, client: Client) -> None:
        """Until the scheduler is gone."""
        while client.status == "running":
            with suppress(TimeoutError):  # it is slow; the client sees where the connection is lost
                self._note_members(dict(await asyncio.wait_for(client.nthreads(), CONNECT_S)))
            await asyncio.sleep(self._beat_s)

    def _note_members(self, threads: dict[str, int]) -> None:
        for address in set(self._members) - set(threads):
            self._drop(self._members[address])
        for address in set(threads) - set(self._members):
            member = self._members[address] = Member(address, threads[address])
            self._spawn(self._attend(member))
        self._resize()

    def _drop(self, member: Member) -> None:
        member.gone.set()
        member.woken.set()
        if self._members.get(member.address) is member:
            del self._members[member.address]
        self._resize()

    def _resize(self) -> None:
        threads = sum(member.threads for member in self._members.values() if member.nonce is not None)
        self.size = min(self._most, threads) if self._most else threads

    # One worker: what it is told, and what it tells.

    async def _attend(self, member: Member) -> None:
        while not member.gone.is_set() and (client := self._client) is not None:
            member.woken.clear()
            try:
                answer = await self._ask(client, member)
                member.suspect = False
                self._hear(member, answer)
            except Exception as exc:  # noqa: BLE001 - whatever Dask raises: this worker cannot be asked now
                self._doubt(member, exc)
            with suppress(TimeoutError):
                await asyncio.wait_for(member.woken.wait(), self._beat_s)

    async def _ask(self, client: Client, member: Member) -> Answer:
        cancel = [(key, ctx.canceled) for key, ctx in member.jobs.items() if ctx.canceled is not None]
        revoke = [] if member.nonce is None else list(self._graves[member.nonce])
        word = Word(self._owner, member.nonce, self._life_of(member), cancel, revoke)
        asked = client.run(attend, word, workers=[member.address], on_error="return")
        answer = (await asyncio.wait_for(asked, max(1.0, 5 * self._beat_s)))[member.address]
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

    def _life_of(self, member: Member) -> float | None:
        """Until when our jobs may live, on the worker's clock. None while something there is to die for certain."""
        trusted = self._trusted_from()
        if trusted is None or member.heard is None or member.nonce is None:
            return None
        if member.suspect or self._graves[member.nonce]:
            return None
        theirs, ours = member.heard
        until = trusted + self._life_s
        self._alive_until[member.nonce] = max(until, self._alive_until.get(member.nonce, 0.0))
        return theirs + until - ours

    def _hear(self, member: Member, answer: Answer) -> None:
        if member.nonce is None:
            member.nonce = answer.nonce
            self._resize()
            self._change.set()
        if member.nonce != answer.nonce:  # another process at the same address
            self._drop(member)
            return
        # Ours is read after theirs: what we count from is never later than theirs.
        member.heard = (answer.now, boottime())
        for key in answer.buried:
            if (grave := self._graves[answer.nonce].get(key)) is not None:
                grave.set()
        for key, news in answer.news:
            if (execution := self._executions.get(key)) is not None:
                pass_on(execution, news, self._attempts)

    # One job.

    async def _run(self, execution: Execution) -> None:
        ctx = self._attempts.watch(execution, without_payload(execution.claimed), start_s=START_S)
        self._executions[execution.key] = execution
        member = await self._find_place(execution, ctx)
        try:
            if ctx.canceled is not None:
                await self._conclude(execution, ctx, Raised(Interrupted(ctx.canceled)))
            elif member is None:
                execution.outcome = Outcome.release(ctx.job)
            else:
                await self._run_on(member, execution, ctx)
        finally:
            del self._executions[execution.key]
            if member is not None:
                del member.jobs[execution.key]
                self._change.set()

    async def _find_place(self, execution: Execution, ctx: Context) -> Member | None:
        """The worker with the most places free, one of which is taken; None if the job is asked to stop before, or
        none comes free.
        """
        until = self._clock() + PLACE_S
        while ctx.canceled is None and self._clock() < until:
            best = max(self._members.values(), key=lambda member: member.free, default=None)
            if best is not None and best.free > 0 and self._life_of(best) is not None:
                best.jobs[execution.key] = ctx
                return best
            self._change.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._change.wait(), self._beat_s)
        return None

    async def _run_on(self, member: Member, execution: Execution, ctx: Context) -> None:
        alive_until, client, nonce = self._life_of(member), self._client, member.nonce
        if alive_until is None or client is None or nonce is None:
            execution.outcome = Outcome.release(ctx.job)
            return
        ctx.on_cancel(lambda: self._wake(member))
        try:
            future = client.submit(
                guard,
                self._task(nonce, execution, alive_until),
                key=f"dispatcher-{self._owner}-{execution.claimed.id}-{execution.claimed.attempt}",
                workers=[member.address],
                allow_other_workers=False,
                pure=False,
            )
        except Exception:  # noqa: BLE001 - whatever Dask raises; what has left this process is not known
            ended: Ended | BaseException | None = concurrent.futures.CancelledError()
        else:
            ended = await self._await_end(future, member)
        if isinstance(ended, Ended):
            pass_on(execution, ended.news, self._attempts)
            where = f"process on {member.address}"
            if ended.outcome is not None:
                execution.outcome = ended.outcome
                return
            if ended.died is not None:
                crash = Crash(f"the worker {where} {ended.died} while it ran the job")
                await self._conclude(execution, ctx, Raised(crash))
                return
            if ended.unable is not None:
                await self._conclude(execution, ctx, Raised(NeverBegan(f"no {where} can be started: {ended.unable}")))
                return
        lost_worker = member.gone.is_set() and self._client is client
        await self._bury(nonce, execution.key)
        if isinstance(ended, Ended):  # Dask may give a task twice: that this one was refused says nothing of the other
            log.info("a Dask worker refused a job: %s", ended.refused, extra={"job_id": execution.claimed.id})
            execution.outcome = Outcome.snooze(ctx.job, AGAIN_S)
        elif lost_worker:
            crash = Crash(f"the Dask worker {member.address} was lost while it ran the job")
            await self._conclude(execution, ctx, Raised(crash))
        elif ended is not None and not isinstance(ended, asyncio.CancelledError | concurrent.futures.CancelledError):
            crash = Crash(f"the task failed on Dask: {type(ended).__name__}: {ended}")
            await self._conclude(execution, ctx, Raised(crash))
        else:  # the scheduler is gone, which is no fault of the job
            execution.outcome = Outcome.release(ctx.job)

    def _task(self, nonce: str, execution: Execution, alive_until: float) -> Task:
        return Task(
            owner=self._owner,
            nonce=nonce,
            alive_until=alive_until,
            order=Order(execution.claimed, execution.executor.source, self._attempts.timeout_s(execution)),
            installation=self._installation,
            max_result_bytes=self._attempts.max_result_bytes,
            log_level=logging.getLogger().level,
            kill_after_s=self._kill_after_s,
        )

    def _wake(self, member: Member) -> None:
        """Any thread."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(member.woken.set)

    async def _await_end(self, future: Future[Ended], member: Member) -> Ended | BaseException | None:
        """What the task returned; an exception or None where it was lost."""
        result: asyncio.Future[Any] = asyncio.ensure_future(_result(future))
        gone = asyncio.ensure_future(member.gone.wait())
        try:
            await asyncio.wait({result, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                return None
            ended = result.result()
            return ended if isinstance(ended, Ended) else TypeError(repr(ended))
        except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001 - whatever Dask makes of it
            return exc
        finally:
            for waiting in (result, gone):
                waiting.cancel()
            future.release()

    async def _bury(self, nonce: str, key: Attempt) -> None:
        """Until nothing of the attempt runs for certain. No word lets jobs of that process live longer meanwhile."""
        grave = self._graves[nonce][key] = asyncio.Event()
        for member in self._members.values():
            member.woken.set()
        try:
            while not grave.is_set() and not self._over(nonce):
                with suppress(TimeoutError):
                    await asyncio.wait_for(grave.wait(), SLACK_S)
        finally:
            del self._graves[nonce][key]

    async def _conclude(self, execution: Execution, ctx: Context, ending: Returned | Raised) -> None:
        ctx.job = job_of(execution.claimed, execution.executor)
        ctx.completed = True  # perhaps: before hooks of a failure are called, the row is asked
        await super()._conclude(execution, ctx, ending)


async def _result(future: Future[Ended]) -> Any:
    return await future
