"""The daemon: one replica. It joins the services, keeps the lease session beating, and ends in good order.

Threads: the heart (lease session: liveness, lease, claims), the completer, the listener, the stager, the rescuer, the pruner,
the gauges, the timekeeper, the workers; the main thread looks after all of them and takes signals.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Protocol

import psycopg

from dispatcher import fence, identity, migrate, process, sdnotify
from dispatcher.db import Connection, SessionLimits, connect_session, first_line
from dispatcher.errors import DispatcherError
from dispatcher.executor import Registry
from dispatcher.inflight import Execution, InFlight
from dispatcher.job import CancelReason
from dispatcher.metrics import Metrics
from dispatcher.ops import Ops
from dispatcher.outcome import Outcome
from dispatcher.queries import claims, outcomes, replicas
from dispatcher.queries.lease import ensure_lease
from dispatcher.runtime import JobRuntime
from dispatcher.services.completer import Completer
from dispatcher.services.dispatch import Dispatch
from dispatcher.services.gauges import Gauges
from dispatcher.services.lease import Lease, ReplicaGone
from dispatcher.services.listener import Listener
from dispatcher.services.pool import ThreadPool, stack_of
from dispatcher.services.pruner import Pruner
from dispatcher.services.rescuer import Rescuer
from dispatcher.services.stager import Stager
from dispatcher.services.timekeeper import Timekeeper
from dispatcher.settings import Settings, load
from dispatcher.sql import statement
from dispatcher.version import __version__

log = logging.getLogger("dispatcher.daemon")

SWITCH_INTERVAL_S = 0.0005  # with Python's 5 ms, eight busy threads made a 20 ms sleeper wake 69 ms late
FENCE_MARGIN = 0.05  # of orphan_after: the fence strikes before anyone may take the jobs
COOPERATION = 0.6  # of orphan_after without an answer: jobs are asked to stop
SOFT_STOP = 0.75  # of the grace: jobs that still run are asked to stop
HARD_EXIT_S = 1.0  # from giving the last jobs back until the kernel ends this process
RETURN_AFTER_S = 3.0  # those jobs are not claimed anew before this, well after the exit
HANG_S = 15.0  # a heart that has not beaten for so long hangs; connecting alone may take 7 s


class Service(Protocol):
    """Does one thing, again and again."""

    def step(self) -> None:
        """Waits for work, about a second at most, and does it."""

    def close(self) -> None:
        """Closes its session."""


class Daemon:
    """One replica of the dispatcher. `run()` returns the exit status."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._settings = settings
        self._registry = registry
        self._dsn = settings.dsn.get_secret_value()
        self._metrics = Metrics()
        self._inflight = InFlight()
        self._fence = fence.Fence()
        self._identity = identity.Identity()
        process.inherit(self._identity.lock_fd)
        self._halt = threading.Event()  # services end
        self._draining = threading.Event()  # no more claims; what runs may finish
        self._signals: list[int] = []
        self._wake_main = threading.Event()
        self._fatal: BaseException | None = None
        self._resign_asked = False
        self._look_at_own = False
        self._contend_from = 0.0
        self._last_tick = time.monotonic()
        self._pause_s = 0.001

    def run(self) -> int:
        """Runs until told to stop; 0 after a graceful stop, 1 after a failure."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        try:
            self._register()
            self._build()
        except DispatcherError:
            self._identity.close()
            raise
        except psycopg.Error as exc:
            self._identity.close()
            raise DispatcherError(f"the database failed at start: {first_line(exc)}") from exc
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        self._ops.start()
        threads = [self._spawn("heart", self._heart)]
        threads += [self._spawn(name, self._serve, service) for name, service in self._services.items()]
        log.info("started", extra={"replica": self._replica, "version": __version__, "types": ",".join(self._registry.types)})
        self._supervise()
        self._stop()
        self._halt.set()
        for wake in (self._completer.wake, self._stager.wake, self._rescuer.wake, self._dispatch.woken.set):
            wake()
        for thread in threads:
            thread.join(timeout=3.0)
        self._leave()
        self._ops.stop()
        self._identity.close()
        log.info("stopped", extra={"replica": self._replica})
        return 1 if self._fatal is not None else 0

    # -- start ------------------------------------------------------------------------------------------------------

    def _register(self) -> None:
        s = self._settings
        with self._session("start")() as conn:
            migrate.require_current(conn)
            self._lease_number = ensure_lease(conn, s.lease_name)
            replicas.publish_types(
                conn, self._registry, limits=s.limits, timeout_s=s.job_timeout.total_seconds(), max_payload_bytes=s.max_payload_bytes
            )
            self._replica = replicas.register_replica(
                conn,
                lease=self._lease_number,
                process=self._identity.process,
                version=__version__,
                types=self._registry.types,
            )
            row = conn.execute(statement("get_installation")).fetchone()
            assert row is not None
            self._runtime = JobRuntime(dsn=self._dsn, installation=row[0])

    def _build(self) -> None:
        s, metrics, stop = self._settings, self._metrics, self._halt
        self._lease = Lease(
            open_session=self._lease_session,
            number=self._lease_number,
            replica=self._replica,
            heartbeat_s=s.heartbeat_interval.total_seconds(),
            duration_s=s.lease_duration.total_seconds(),
            orphan_after_s=s.orphan_after.total_seconds(),
            metrics=metrics,
            stop=stop,
        )
        self._completer = Completer(
            open_session=self._session("completer"), inflight=self._inflight, metrics=metrics, settled=self._settled, stop=stop
        )
        self._runtime.progress = self._completer.report_progress
        self._pool = ThreadPool(
            threads=s.threads,
            inflight=self._inflight,
            runtime=self._runtime,
            job_timeout_s=s.job_timeout.total_seconds(),
            ended=self._completer.put,
        )
        self._dispatch = Dispatch(
            replica=self._replica,
            lease_number=self._lease_number,
            registry=self._registry,
            inflight=self._inflight,
            pool=self._pool,
            before_run=self._arm_fence,
            metrics=metrics,
        )
        self._dispatch.set_limits(s.limits)
        self._stager = Stager(
            open_session=self._session("stager"),
            leading=self._leading,
            awake=lambda: self._dispatch.awake,
            promoted=self._dispatch.woken.set,
            poll_interval_s=s.poll_interval.total_seconds(),
            metrics=metrics,
            stop=stop,
        )
        self._rescuer = Rescuer(
            open_session=self._session("rescuer"),
            replica=self._replica,
            lease_number=self._lease_number,
            orphan_after_s=s.orphan_after.total_seconds(),
            overdue_grace_s=s.orphan_after.total_seconds(),
            registry=self._registry,
            leading=self._leading,
            rescued=self._on_rescued,
            metrics=metrics,
            stop=stop,
        )
        self._timekeeper = Timekeeper(
            inflight=self._inflight,
            metrics=metrics,
            stack_of=stack_of,
            note_timed_out=self._completer.note_timed_out,
            stop=stop,
        )
        own_channel = f"dispatcher_replica_{self._replica}"
        self._services: dict[str, Service] = {
            "completer": self._completer,
            "listener": Listener(
                open_session=self._session("listener"),
                channels=(f"dispatcher_{self._lease_number}", own_channel),
                heard=self._heard,
                connected=self._on_listening,
                metrics=metrics,
                stop=stop,
            ),
            "stager": self._stager,
            "rescuer": self._rescuer,
            "timekeeper": self._timekeeper,
            "pruner": Pruner(
                open_session=self._session("pruner"),
                leading=self._leading,
                keep_succeeded=s.retention_succeeded,
                keep_failed=s.retention_failed,
                metrics=metrics,
                stop=stop,
            ),
            "gauges": Gauges(open_session=self._session("gauges"), leading=self._leading, metrics=metrics, stop=stop),
        }
        self._ops = Ops(s.metrics_host, s.metrics_port, metrics.registry, self._checks)

    def _session(self, name: str) -> Callable[[], Connection]:
        limits = SessionLimits(silence_s=self._settings.lease_duration.total_seconds())
        return lambda: connect_session(self._dsn, name=f"dispatcher {name}", limits=limits)

    def _lease_session(self) -> Connection:
        duration = self._settings.lease_duration.total_seconds()
        # A statement must fail before the lease does, and the lease before a standby evicts (Lease, EVICTION_MARGIN).
        limits = SessionLimits(statement_s=0.6 * duration, idle_s=duration, silence_s=duration)
        return connect_session(self._dsn, name=f"dispatcher lease {self._replica}", limits=limits)

    # -- the heart --------------------------------------------------------------------------------------------------

    def _heart(self) -> None:
        while not self._halt.is_set():
            try:
                self._tick()
            except psycopg.Error as exc:  # a claim or the like: whatever it was, the session is not to be trusted
                self._lease.failed(exc)
            self._last_tick = time.monotonic()
            self._metrics.last_tick.set_to_current_time()
        self._lease.drop()

    def _tick(self) -> None:
        lease = self._lease
        if lease.conn is None:
            if not lease.connect():
                return
            self._look_at_own = True
        lease.beat()
        self._mind_fence()
        if lease.conn is None:
            return
        if self._look_at_own:
            self._give_back_unknown(lease.conn)
        if self._draining.is_set():
            self._drain(lease.conn)
        elif lease.term is not None:
            self._lead(lease.conn)
        elif time.monotonic() < self._contend_from:
            self._dispatch.woken.wait(self._beat_in())
            self._dispatch.woken.clear()
        elif lease.contend() and lease.conn is not None and lease.term is not None:
            self._dispatch.begin(lease.conn, lease.term)
            self._stager.wake()
            self._rescuer.wake()

    def _lead(self, conn: Connection) -> None:
        dispatch = self._dispatch
        if self._resign_asked:
            self._resign_asked = False
            # Long enough for any standby to take it; with none, we go on.
            self._contend_from = time.monotonic() + 2 * self._settings.heartbeat_interval.total_seconds()
            self._lease.resign()
            return
        dispatch.woken.clear()  # before the look: what is set from now on is looked at again
        if time.monotonic() < self._lease.claim_from:
            dispatch.woken.wait(self._beat_in())
            return
        if dispatch.step(conn):
            self._pause_s = 0.001
            if dispatch.busy:
                dispatch.stay_awake(conn)
        elif dispatch.room() <= 0:
            dispatch.woken.wait(min(self._beat_in(), 0.25))
            dispatch.return_waiting(conn)
        elif not dispatch.looked_everywhere:
            dispatch.read_again()
        elif dispatch.awake:
            if not dispatch.fall_asleep(conn):  # an enqueuer is about to commit: look again soon
                dispatch.woken.wait(self._pause_s)
                self._pause_s = min(2 * self._pause_s, self._settings.poll_interval.total_seconds())
            dispatch.read_again()
        else:
            dispatch.woken.wait(min(self._beat_in(), self._settings.poll_interval.total_seconds()))
            dispatch.read_again()

    def _drain(self, conn: Connection) -> None:
        self._lease.resign()
        waiting = self._pool.take_waiting()
        if waiting:
            given_back = claims.release_jobs(conn, self._replica, [execution.key for execution in waiting])
            self._inflight.remove(execution for execution in waiting if execution.key in given_back)
            self._pool.put_back([execution for execution in waiting if execution.key not in given_back])
            outcomes.wake_leader(conn, self._lease_number)
            self._wake_main.set()
        self._dispatch.woken.clear()
        self._dispatch.woken.wait(self._beat_in())

    def _give_back_unknown(self, conn: Connection) -> None:
        """Gives back what the database believes we run and we do not: claims whose answer was lost."""
        unknown = [key for key in claims.own_running(conn, self._replica) if key not in self._inflight]
        given_back = claims.release_jobs(conn, self._replica, unknown) if unknown else set()
        self._look_at_own = len(given_back) < len(unknown)  # a locked row: again at the next tick
        if given_back:
            log.warning("gave back jobs whose claim was not answered", extra={"jobs": len(given_back)})
            outcomes.wake_leader(conn, self._lease_number)

    def _beat_in(self) -> float:
        """Seconds until the lease session must beat again."""
        return self._lease.beat_in()

    def _arm_fence(self) -> None:
        trusted = self._lease.trusted_from
        if trusted is not None:
            self._fence.arm(trusted + self._settings.orphan_after.total_seconds() * (1 - FENCE_MARGIN))

    def _mind_fence(self) -> None:
        if self._inflight.executing or self._pool.waiting:
            self._arm_fence()
        else:
            self._fence.disarm()

    # -- between the services -----------------------------------------------------------------------------------------

    def _leading(self) -> bool:
        return self._lease.term is not None

    def _settled(self, conn: Connection, rescheduled: bool) -> None:
        self._dispatch.woken.set()
        if rescheduled:
            self._stager.wake()
        if not self._leading():
            outcomes.wake_leader(conn, self._lease_number)
        if self._draining.is_set():
            self._wake_main.set()

    def _on_rescued(self) -> None:
        self._dispatch.recount()
        self._stager.wake()

    def _heard(self, channel: str, payload: str) -> None:
        word, _, rest = payload.partition(" ")
        match word:
            case "":
                self._dispatch.heard()
                self._stager.wake()
            case "cancel" if rest.isdigit():
                self._timekeeper.cancel([int(rest)])
            case "resign":
                self._resign_asked = True
                self._dispatch.woken.set()
            case "check":
                self._look_at_own = True
                self._dispatch.woken.set()
            case _:
                log.warning("a notification that nobody understands", extra={"channel": channel, "payload": payload[:100]})

    def _on_listening(self) -> None:
        """Whatever was missed while nobody listened is looked for now."""
        self._dispatch.recount()
        self._stager.wake()
        executing = list(self._inflight.executing)
        if executing:
            with self._session("missed cancels")() as conn:
                self._timekeeper.cancel(outcomes.list_canceled(conn, self._replica, executing))

    def _checks(self) -> dict[str, str | None]:
        return {
            "database": None if self._lease.conn is not None else "no session",
            "heart": None if time.monotonic() - self._last_tick < HANG_S else "makes no progress",
            "draining": "stopping" if self._draining.is_set() else None,
        }

    # -- the main thread ----------------------------------------------------------------------------------------------

    def _spawn(self, name: str, target: Callable[..., None], *args: object) -> threading.Thread:
        def guarded() -> None:
            try:
                target(*args)
            except BaseException as exc:  # noqa: BLE001 - a service that dies must not leave a daemon that looks alive
                self._fatal = exc
                if isinstance(exc, DispatcherError):
                    log.error("%s", exc)
                else:
                    log.exception("the %s failed", name)
                self._wake_main.set()

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    def _serve(self, service: Service) -> None:
        try:
            while not self._halt.is_set():
                service.step()
        finally:
            service.close()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)
        self._wake_main.set()

    def _supervise(self) -> None:
        """Until told to stop: reloads, feeds the watchdog, says what this replica is doing, minds the trust."""
        watchdog_s = sdnotify.watchdog_interval_s()
        pause_s = min(0.5, (watchdog_s or 1.0) / 4)
        ready, said = False, ""
        while self._fatal is None:
            while self._signals:
                number = self._signals.pop(0)
                if number != signal.SIGHUP:
                    log.info("told to stop", extra={"signal": signal.Signals(number).name})
                    return
                self._reload()
            if not ready and self._lease.conn is not None:
                ready = True
                sdnotify.notify("READY=1")
            if self._progressing():
                sdnotify.notify("WATCHDOG=1")
            if (saying := self._status()) != said:
                said = saying
                sdnotify.notify(f"STATUS={saying}")
            self._mind_trust()
            self._wake_main.wait(pause_s)
            self._wake_main.clear()

    def _progressing(self) -> bool:
        return time.monotonic() - self._last_tick < HANG_S

    def _status(self) -> str:
        term = self._lease.term
        role = f"leader, term {term}" if term is not None else "standby" if self._lease.conn is not None else "no database"
        for type, running in self._inflight.counts().items():
            self._metrics.running.labels(type).set(running)
        return f"{role}, {len(self._inflight)} running"

    def _mind_trust(self) -> None:
        """Asks the jobs to stop when the database has not answered the lease session for long; the fence comes after."""
        trusted = self._lease.trusted_from
        if self._lease.conn is None and not self._inflight.executing and not self._pool.waiting:
            self._fence.disarm()  # who runs no job just reconnects
        elif trusted is not None and fence.boottime() - trusted > COOPERATION * self._settings.orphan_after.total_seconds():
            self._timekeeper.cancel_all(CancelReason.LOST)

    def _reload(self) -> None:
        sdnotify.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            settings, _ = load()
            self._dispatch.set_limits(settings.limits)
            log.info("reloaded the limits", extra={"limits": dict(settings.limits)})
        except DispatcherError as exc:
            log.error("the reload changed nothing: %s", exc)
        sdnotify.notify("READY=1")

    # -- stop -------------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """Gives the lease away, lets running jobs finish within the grace, and returns the rest."""
        sdnotify.notify("STOPPING=1", "STATUS=draining")
        self._draining.set()
        self._dispatch.woken.set()
        if isinstance(self._fatal, ReplicaGone):
            self._exit_now("this replica was removed while jobs ran on it")
        began, grace_s = time.monotonic(), self._settings.shutdown_grace.total_seconds()
        soft, hard, asked = began + SOFT_STOP * grace_s, began + grace_s, False
        while time.monotonic() < hard and (len(self._inflight) or self._lease.term is not None):
            if self._signals:  # told twice: now
                self._signals.clear()
                soft, hard = time.monotonic(), min(hard, time.monotonic() + 2.0)
            if not asked and time.monotonic() >= soft:
                asked = True
                self._timekeeper.cancel_all(CancelReason.SHUTDOWN)
            self._mind_trust()
            if self._progressing():
                sdnotify.notify("WATCHDOG=1")
            self._wake_main.wait(0.1)
            self._wake_main.clear()
        if len(self._inflight):
            self._return_running()

    def _return_running(self) -> None:
        """What still runs is written as due after this process is certainly gone; then the process goes."""
        self._fence.arm(fence.boottime() + HARD_EXIT_S)
        left = self._inflight.snapshot()
        # A job that ended but is not yet recorded keeps its outcome; one that runs on is tried again, no failure.
        returned = [execution for execution in left if execution.outcome is None]
        try:
            with self._session("stop")() as conn:
                outcomes.reschedule_jobs(conn, [_snoozed(execution) for execution in returned])
        except (psycopg.Error, DispatcherError) as exc:
            log.error("could not give back running jobs, others will find them: %s", first_line(exc))
        self._exit_now(f"{len(returned)} jobs did not stop in time and were given back")

    def _exit_now(self, reason: str) -> None:
        if not self._inflight.executing:
            return
        log.warning("ends at once: %s", reason)
        logging.shutdown()
        os._exit(1 if self._fatal is not None else 0)

    def _leave(self) -> None:
        try:
            with self._session("leave")() as conn:
                replicas.remove_replica(conn, self._replica)
        except (psycopg.Error, DispatcherError) as exc:
            log.warning("could not remove this replica's row, others will: %s", first_line(exc))


def _snoozed(execution: Execution) -> Outcome:
    claimed = execution.claimed
    return Outcome.snooze_attempt(claimed.id, claimed.attempt, RETURN_AFTER_S)
