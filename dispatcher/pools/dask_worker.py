"""What runs on a Dask worker: a task is not the job itself but its guard, which runs the job in a process of its own.

Dask cannot interrupt a task, and a task outlives whoever submitted it. So the job's process has a supervisor
(dispatcher/supervisor.py) with a kernel timer, which kills it unless its owner, the replica that claimed the job, is
heard of in time, whatever becomes of the worker, of the scheduler and of the network. No clocks are compared: the owner
is told this machine's time, and says later how long its jobs may live counted from then (dispatcher/pools/dask.py).
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections import deque
from dataclasses import dataclass, field
from uuid import UUID

from dispatcher.errors import DispatcherError
from dispatcher.fence import boottime
from dispatcher.job import CancelReason
from dispatcher.outcome import Outcome
from dispatcher.pools.messages import Attempt, FromWorker, Order, Progress, Setup
from dispatcher.pools.worker import NeverStarted, WorkerDied, WorkerProcess
from dispatcher.settings import load

IDLE_S = 3600.0  # a warm process that has nothing to do needs no owner
STARTS = 3  # of a process for one job, as in the process pool
MAX_CLOSED = 100_000
MAX_NEWS = 10_000  # what an owner that asks no more would have been told

_nonce = secrets.token_hex(8)  # of this process: an address may be used again by another
_lock = threading.Lock()
_warm: deque[tuple[tuple[UUID, int], WorkerProcess]] = deque()
_runs: dict[tuple[str, Attempt], Run] = {}
_alive_until: dict[str, float] = {}  # by owner, in boottime() seconds of this machine
_closed: dict[tuple[str, Attempt], None] = {}  # what may not begin: it has ended, or is revoked; the latest last


@dataclass(frozen=True, slots=True)
class Task:
    """One attempt, as its owner gives it to Dask."""

    owner: str
    nonce: str
    """Of the worker process that it was meant for."""
    alive_until: float
    order: Order
    installation: UUID
    replica: int
    """In whose name its jobs write into the database."""
    max_result_bytes: int
    log_level: int
    kill_after_s: float


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of it. `refused`: this task began nothing; another one with the same attempt may have."""

    outcome: Outcome | None = None
    died: str | None = None
    unable: str | None = None
    """Why no process can be started."""
    refused: str | None = None
    news: list[FromWorker] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Word:
    """What an owner has to say. `alive_until` is in this machine's boottime(), None while it must not say so."""

    owner: str
    nonce: str | None
    """Of the worker process whose clock it knows: another one at this address has another clock."""
    alive_until: float | None
    cancel: list[tuple[Attempt, CancelReason]]
    """Said again until they have ended: a task may be on its way."""
    revoke: list[Attempt]
    """To be killed where they run, and never to be begun."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What it is told. `now` is this machine's boottime()."""

    nonce: str
    now: float
    news: list[tuple[Attempt, list[FromWorker]]]
    buried: list[Attempt]
    """Those of `revoke` of which nothing runs."""


class Run:
    """An attempt that runs here."""

    def __init__(self, task: Task, worker: WorkerProcess) -> None:
        self.task = task
        self.worker = worker
        self._news: list[FromWorker] = []
        self._progress: Progress | None = None

    @property
    def key(self) -> Attempt:
        """Job and attempt."""
        return self.task.order.claimed.id, self.task.order.claimed.attempt

    def hear(self, news: FromWorker) -> None:
        """Keeps it for the owner."""
        with _lock:
            if isinstance(news, Progress):
                self._progress = news
            elif len(self._news) < MAX_NEWS:
                self._news.append(news)

    def take_news(self) -> list[FromWorker]:
        """What the owner has not been told yet. Under the lock."""
        news, self._news = self._news, []
        if self._progress is not None:
            news.append(self._progress)
            self._progress = None
        return news


def attend(word: Word) -> Answer:
    """Called by an owner every second or so, on the worker's event loop: must not block."""
    now = boottime()
    with _lock:
        runs = {key: run for (owner, key), run in _runs.items() if owner == word.owner}
        for key in word.revoke:
            _close(word.owner, key)
        if word.alive_until is not None and word.nonce == _nonce:
            _alive_until[word.owner] = max(word.alive_until, _alive_until.get(word.owner, 0.0))
            for run in runs.values():  # under the lock: a process that comes free may be armed for another owner next
                run.worker.arm(word.alive_until)
        for owner in [owner for owner, until in _alive_until.items() if until < now - IDLE_S]:
            del _alive_until[owner]
        news = [(key, told) for key, run in runs.items() if (told := run.take_news())]
    for key, reason in word.cancel:
        if key in runs:
            runs[key].worker.stop(key, reason, runs[key].task.kill_after_s)
    for key in word.revoke:
        if key in runs:
            runs[key].worker.kill(key)
    return Answer(_nonce, now, news, [key for key in word.revoke if key not in runs])


def guard(task: Task) -> Ended:
    """Runs one attempt, in a thread of the worker."""
    left = STARTS
    while True:
        left -= 1
        try:
            worker = _take(task)
        except (OSError, DispatcherError) as exc:  # no file or process to be had; settings that cannot be read
            return Ended(unable=str(exc))
        run = Run(task, worker)
        ended = _run(run)
        again = ended.unable is not None and left > 0
        if worker.worn:
            worker.close()  # before it is said that nothing of it runs
        ended.news.extend(_leave(run, again=again))
        if not worker.worn:
            worker.arm(boottime() + IDLE_S)
            _warm.append((_whose(task), worker))
        if not again:
            return ended


def _run(run: Run) -> Ended:
    if refused := _enter(run.task, run.key, run):
        return Ended(refused=refused)
    try:
        run.worker.begin(run.key)
        return Ended(outcome=run.worker.run(run.task.order, run.hear))
    except WorkerDied as exc:
        return Ended(died=str(exc))
    except NeverStarted as exc:
        return Ended(unable=f"it {exc}")


def _enter(task: Task, key: Attempt, run: Run) -> str | None:
    """Arms the timer, then lets the attempt in; why it may not begin, otherwise."""
    now = boottime()
    with _lock:
        until = max(task.alive_until, _alive_until.get(task.owner, 0.0))
        if task.nonce != _nonce:
            return "it was meant for a worker process that is gone"
        if now >= until:
            return "its owner has not been heard of for too long"
        if (task.owner, key) in _closed or (task.owner, key) in _runs:
            return "it runs or has run here, or its owner does not want it any more"
        run.worker.arm(until)
        _runs[task.owner, key] = run
    return None


def _leave(run: Run, *, again: bool) -> list[FromWorker]:
    owner, key = run.task.owner, run.key
    with _lock:
        if _runs.get((owner, key)) is run:
            del _runs[owner, key]
            if not again:
                _close(owner, key)
        return run.take_news()


def _close(owner: str, key: Attempt) -> None:
    """It may not begin here any more. Under the lock."""
    _closed[owner, key] = None
    if len(_closed) > MAX_CLOSED:
        del _closed[next(iter(_closed))]


def _take(task: Task) -> WorkerProcess:
    while _warm:
        try:
            whose, worker = _warm.pop()
        except IndexError:
            break
        if not worker.dead and whose == _whose(task):
            return worker
        worker.close()
    return WorkerProcess(_setup(task))


def _whose(task: Task) -> tuple[UUID, int]:
    return task.installation, task.replica


def _setup(task: Task) -> Setup:
    """The database and the store are this worker's own settings: no secret goes over the cluster."""
    settings, origin = load()
    known = origin["dsn"] != "default" or any(name in os.environ for name in ("PGHOST", "PGSERVICE", "PGDATABASE"))
    return Setup(
        sources=[],
        dsn=settings.dsn.get_secret_value() if known else None,
        installation=task.installation,
        owner=task.replica,
        result_store=settings.result_store,
        max_result_bytes=task.max_result_bytes,
        log_level=task.log_level,
    )


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Not that an owner has asked, which Dask logs every second."""
    return not (isinstance(record.args, tuple) and "attend" in record.args and "out-of-band" in str(record.msg))


logging.getLogger("distributed.worker").addFilter(_is_worth_a_line)
