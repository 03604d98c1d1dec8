"""The process pool: a job runs in a process of its own, one that is warm already, and can be killed.

A thread of this pool waits for one worker process at a time. Whatever happens to a worker happens to one job: a
segmentation fault, sys.exit, a kill where memory runs out; the next job gets a fresh one.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from dispatcher.context import Context, Interrupted
from dispatcher.inflight import Execution, InFlight
from dispatcher.outcome import Crash, Outcome, Raised
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

    def start(self) -> None:
        """Starts all workers, in a thread of its own."""
        threading.Thread(target=self._warm_up, name="process-warm-up", daemon=True).start()

    def stop(self) -> None:
        """Ends the workers that have nothing to do."""
        while self._warm:
            self._warm.pop().close()

    def stack(self, execution: Execution) -> str | None:
        """Its worker tells, when the job is asked to stop."""
        return execution.stack

    def _warm_up(self) -> None:
        for _ in range(self.size):
            try:
                self._warm.append(WorkerProcess(self._setup))
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
        except (OSError, NeverStarted) as exc:
            self._conclude(execution, ctx, Crash(f"no worker process can be started: {exc}"))

    def _run_in_worker(self, execution: Execution, ctx: Context) -> Outcome:
        for last in (False,) * (STARTS - 1) + (True,):
            worker, ended = self._take(), threading.Event()
            try:
                worker.begin(self._order(execution))
                stop = threading.Thread(target=self._stop, args=(worker, execution, ended), daemon=True)
                ctx.on_cancel(stop.start)  # a thread of its own: it waits
                return worker.finish(lambda news: pass_on(execution, [news], self._attempts))
            except NeverStarted:
                if last or ctx.canceled is not None:
                    raise
            finally:
                ended.set()
                if worker.worn:
                    worker.close()
                else:
                    self._warm.append(worker)
        raise AssertionError("the last try returns or raises")

    def _take(self) -> WorkerProcess:
        while self._warm:
            worker = self._warm.pop()  # the one that ran last: its memory is the warmest
            if not worker.dead:
                return worker
            worker.close()
        return WorkerProcess(self._setup)

    def _order(self, execution: Execution) -> Order:
        return Order(execution.claimed, execution.executor.source, self._attempts.timeout_s(execution))

    def _stop(self, worker: WorkerProcess, execution: Execution, ended: threading.Event) -> None:
        ctx = execution.ctx
        assert ctx is not None
        assert ctx.canceled is not None
        worker.cancel(execution.key, ctx.canceled)
        if not ended.wait(self._kill_after_s):
            worker.kill(execution.key)

    def _conclude(self, execution: Execution, ctx: Context, death: BaseException) -> None:
        """Decided here, since the worker cannot; its hooks are called in this thread."""
        ctx.job = job_of(execution.claimed, execution.executor)
        ctx.completed = True  # perhaps: before hooks of a failure are called, the row is asked
        self._attempts.conclude(execution, ctx, Raised(death))
