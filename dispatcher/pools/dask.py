"""The pool on a Dask cluster: this process keeps futures, the jobs run on the cluster's workers.

_run ─task─▶ scheduler ─▶ worker: guard ─▶ the job's own process

Tasks are bound to a worker, else Dask would run them again elsewhere when it loses sight of one. How long a job may
live there, whoever is lost from sight: dask_cluster.py.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import UUID

from distributed import Future

from dispatcher.context import Context, Interrupted
from dispatcher.inflight import Execution, InFlight
from dispatcher.outcome import Crash, NeverBegan, Outcome, Raised, Returned
from dispatcher.pools.attempt import Attempts, job_of, without_payload
from dispatcher.pools.dask_cluster import Cluster, Member
from dispatcher.pools.dask_worker import Ended, Task, guard
from dispatcher.pools.loop import LoopPool
from dispatcher.pools.messages import Attempt, FromWorker, Order
from dispatcher.pools.news import START_S, pass_on

log = logging.getLogger("dispatcher.pool")

KILL_AFTER_S = 5.0  # from asking a job to stop, as in the process pool
AGAIN_S = 1.0  # until what was refused runs again
PLACE_S = 5.0  # a job for which there is no place for so long is given back: the cluster has become smaller


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
        owner: int,
        inflight: InFlight,
        attempts: Attempts,
        ended: Callable[[Execution], None],
        kill_after_s: float = KILL_AFTER_S,
    ) -> None:
        super().__init__(name="dask", size=0, inflight=inflight, attempts=attempts, ended=ended)
        self._most = size
        self._installation = installation
        self._replica = owner
        self._kill_after_s = kill_after_s
        self._owner = secrets.token_hex(8)
        self._executions: dict[Attempt, Execution] = {}
        self._cluster = Cluster(
            address=address,
            owner=self._owner,
            orphan_after_s=orphan_after_s,
            trusted_from=trusted_from,
            heard=self._hear,
            resized=self._resize,
        )

    def start(self) -> None:
        """Looks for the cluster, in the background; until it is found, no job is claimed for it."""
        self._loop.call_soon_threadsafe(lambda: self._spawn(self._cluster.serve()))

    def lost(self, stuck: int) -> int:  # noqa: ARG002
        """None: their processes are killed."""
        return 0

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
                self._cluster.change.set()

    async def _find_place(self, execution: Execution, ctx: Context) -> Member | None:
        """The worker with the most places free, one of which is taken; None if the job is asked to stop before, or
        none comes free.
        """
        until = self._clock() + PLACE_S
        while ctx.canceled is None and self._clock() < until:
            best = max(self._cluster.members.values(), key=lambda member: member.free, default=None)
            if best is not None and best.free > 0 and self._cluster.life_of(best) is not None:
                best.jobs[execution.key] = ctx
                return best
            self._cluster.change.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._cluster.change.wait(), self._cluster.beat_s)
        return None

    async def _run_on(self, member: Member, execution: Execution, ctx: Context) -> None:
        alive_until, client, nonce = self._cluster.life_of(member), self._cluster.client, member.nonce
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
        lost_worker = member.gone.is_set() and self._cluster.client is client
        await self._cluster.bury(nonce, execution.key)
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

    def _hear(self, key: Attempt, news: list[FromWorker]) -> None:
        if (execution := self._executions.get(key)) is not None:
            pass_on(execution, news, self._attempts)

    def _resize(self, threads: int) -> None:
        self.size = min(self._most, threads) if self._most else threads

    def _task(self, nonce: str, execution: Execution, alive_until: float) -> Task:
        return Task(
            owner=self._owner,
            nonce=nonce,
            alive_until=alive_until,
            order=Order(execution.claimed, execution.executor.source, self._attempts.timeout_s(execution)),
            installation=self._installation,
            replica=self._replica,
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

    async def _conclude(self, execution: Execution, ctx: Context, ending: Returned | Raised) -> None:
        ctx.job = job_of(execution.claimed, execution.executor)
        ctx.completed = True  # perhaps: before hooks of a failure are called, the row is asked
        await super()._conclude(execution, ctx, ending)


async def _result(future: Future[Ended]) -> Any:
    return await future
