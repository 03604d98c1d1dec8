"""The process pool: a job runs in a process of its own, one that is warm already, and can be killed.

A thread of this pool waits for one worker process at a time. Whatever happens to a worker happens to one job: a
segmentation fault, sys.exit, a kill where memory runs out; the next job gets a fresh one.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import partial

from dispatcher.context import Context, Interrupted
from dispatcher.inflight import Execution, InFlight
from dispatcher.outcome import Crash, NeverBegan, Outcome, Raised
from dispatcher.pools.attempt import Attempts, job_of, without_payload
from dispatcher.pools.messages import Order, Setup
from dispatcher.pools.news import START_S, pass_on
from dispatcher.pools.thread import ThreadPool
from dispatcher.pools.worker import NeverStarted, WorkerDied, WorkerProcess

log = logging.getLogger("dispatcher.pool")

KILL_AFTER_S = 5.0  # from asking a job to stop; as for the programs of `command`
STARTS = 3  # of a worker for one job: one that dies before it takes the job has not failed it


class ProcessPool(ThreadPool):
    """Runs executions in `size` worker processes."""

    _quick_s = 0.0  # its threads only wait, so they never fight

    def __init__(
        self,
        *,
        size: int,
        setup: Setup,
        inflight: InFlight,
        attempts: Attempts,
        ended: Callable[[Execution], None],
        kill_after_s: float = KILL_AFTER_S,
    ) -> None:
        super().__init__(name="process", threads=size, inflight=inflight, attempts=attempts, ended=ended)
        self._setup = setup
        self._kill_after_s = kill_after_s
        self._warm: deque[WorkerProcess] = deque()
        self._stopped = False

    def start(self) -> None:
        """Starts all workers, in a thread of its own."""
        threading.Thread(target=self._warm_up, name="process-warm-up", daemon=True).start()

    def stop(self) -> None:
        """Ends the workers that have nothing to do."""
        self._stopped = True
        while (worker := self._pop()) is not None:
            worker.close()

    def stack(self, execution: Execution) -> str | None:
        """Its worker tells, when the job is asked to stop."""
        return execution.stack

    def lost(self, stuck: int) -> int:  # noqa: ARG002
        """None: their processes are killed."""
        return 0

    def _warm_up(self) -> None:
        while not self._stopped and len(self._warm) + self.executing < self.size:
            try:
                self._put_back(WorkerProcess(self._setup))
            except OSError as exc:
                log.warning("cannot start a worker process: %s", exc)
                return

    def _run(self, execution: Execution) -> None:
        ctx = self._attempts.watch(execution, without_payload(execution.claimed), start_s=START_S)
        try:
            ctx.raise_if_canceled()  # canceled while it waited for its turn
            execution.outcome = self._run_in_worker(execution, ctx)
        except Interrupted as exc:
            self._conclude(execution, ctx, exc)
        except WorkerDied as exc:
            self._conclude(execution, ctx, Crash(f"the worker process {exc} while it ran the job"))
        except Exception as exc:  # noqa: BLE001 - NeverStarted, OSError, no thread: it has not begun
            self._conclude(execution, ctx, NeverBegan(f"no worker process can be started: {exc}"))

    def _run_in_worker(self, execution: Execution, ctx: Context) -> Outcome:
        for last in (False,) * (STARTS - 1) + (True,):
            worker = self._take()
            try:
                worker.begin(execution.key)
                ctx.on_cancel(partial(self._cancel, worker, execution, ctx))
                return worker.run(self._order(execution), lambda news: pass_on(execution, [news], self._attempts))
            except NeverStarted:
                if last or ctx.canceled is not None:
                    raise
            finally:
                self._put_back(worker)
        raise AssertionError("the last try returns or raises")

    def _take(self) -> WorkerProcess:
        while (worker := self._pop()) is not None:
            if not worker.dead:
                return worker
            worker.close()
        return WorkerProcess(self._setup)

    def _pop(self) -> WorkerProcess | None:
        try:
            return self._warm.pop()  # the one that ran last: its memory is the warmest
        except IndexError:
            return None

    def _put_back(self, worker: WorkerProcess) -> None:
        if worker.worn or len(self._warm) >= self.size:
            worker.close()
            return
        self._warm.append(worker)
        if self._stopped:  # looked at after it was put there: one of us sees it
            self.stop()

    def _order(self, execution: Execution) -> Order:
        return Order(execution.claimed, execution.executor.source, self._attempts.timeout_s(execution))

    def _cancel(self, worker: WorkerProcess, execution: Execution, ctx: Context) -> None:
        assert ctx.canceled is not None
        worker.stop(execution.key, ctx.canceled, self._kill_after_s)

    def _conclude(self, execution: Execution, ctx: Context, death: BaseException) -> None:
        """Decided here, since the worker cannot; its hooks are called in this thread."""
        ctx.job = job_of(execution.claimed, execution.executor)
        ctx.completed = True  # perhaps: before hooks of a failure are called, the row is asked
        self._attempts.conclude(execution, ctx, Raised(death))
