"""The daemon: the main thread of a replica. It runs the services, takes signals, and ends in good order."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import psycopg

from dispatcher import sdnotify, supervised
from dispatcher.abort import end_without_memory
from dispatcher.db import first_line
from dispatcher.errors import GRANT_HINT, DispatcherError, SchemaError
from dispatcher.executor import Registry
from dispatcher.fitness import Fitness, Unfit
from dispatcher.forks import HANDLED, part_with_children
from dispatcher.identity import Identity
from dispatcher.job import CancelReason
from dispatcher.leftovers import write_leftovers
from dispatcher.ops import Ops
from dispatcher.own_file import OwnFile
from dispatcher.replica import Replica, Service
from dispatcher.services.lease import ReplicaGone
from dispatcher.settings import Settings, load
from dispatcher.version import __version__

log = logging.getLogger("dispatcher.daemon")

SWITCH_INTERVAL_S = 0.0005  # with Python's 5 ms, eight busy threads made a 20 ms sleeper wake 69 ms late
GC_OBJECTS = 50_000  # a collection per 700 objects, while thousands of jobs are in flight, was a fifth of the work
SOFT_STOP = 0.75  # of the grace: jobs that still run are asked to stop
HURRY_S = 2.0  # what is left of the grace when told to stop twice
HARD_EXIT_S = 1.0  # from giving the last jobs back until the kernel ends this process
LINGER_S = 4.0  # with shutdown_grace it must be below TimeoutStopSec
END_S = 3.0  # for the services to end; who has not by then is not waited for


class Daemon:
    """One replica of the dispatcher. `run()` returns the exit status."""

    def __init__(
        self, settings: Settings, registry: Registry, *, reload: Callable[[], Settings] = lambda: load()[0]
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._load_again = reload
        self._halt = threading.Event()
        self._halt_heart = threading.Event()
        self._woken = threading.Event()
        self._signals: list[int] = []
        self._fatal: BaseException | None = None

    def run(self) -> int:
        """Runs until told to stop; 0 after a graceful stop, 1 after a failure. Raises DispatcherError at start."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        gc.set_threshold(GC_OBJECTS, 10, 10)
        gc.freeze()
        identity = Identity()
        self._lock_file = OwnFile(identity.lock_fd)
        supervised.inherit(identity.lock_fd)
        try:
            self._replica = Replica(self._settings, self._registry, identity.process, halt=self._halt)
            self._fitness = Fitness(self._replica, most_stuck=self._settings.stuck_limit)
            self._serve_metrics()
            part_with_children()
            try:
                self._run()
            finally:
                self._linger()
            return 0 if self._fatal is None else 1
        except psycopg.errors.InsufficientPrivilege as exc:
            raise SchemaError(
                f"a replica's role needs the level run on the dispatcher schema ({first_line(exc)}): {GRANT_HINT}"
            ) from exc
        except psycopg.Error as exc:
            raise DispatcherError(f"the database failed at start: {first_line(exc)}") from exc
        finally:
            supervised.disinherit(identity.lock_fd)
            self._lock_file.forget()
            identity.close()

    def _linger(self) -> None:
        """Threads that jobs have left behind, for which Python would wait without end, are given LINGER_S."""
        end = threading.Timer(LINGER_S, os._exit, (0 if self._fatal is None else 1,))
        end.daemon = True
        end.start()

    def _serve_metrics(self) -> None:
        s = self._settings
        self._ops = Ops(s.metrics_host, s.metrics_port, self._replica.metrics.registry, self._checks)
        try:
            self._ops.start()
        except DispatcherError:  # the port is taken
            self._replica.leave()
            raise

    def _run(self) -> None:
        for number in HANDLED:
            signal.signal(number, self._on_signal)
        heart = self._spawn("heart", self._replica.heart, self._halt_heart)
        threads = [self._spawn(name, service, self._halt) for name, service in self._replica.services.items()]
        for pool in self._replica.pools:
            pool.start()
        log.info(
            "started",
            extra={"replica": self._replica.id, "version": __version__, "types": ",".join(self._registry.types)},
        )
        try:
            self._supervise()
        except BaseException as exc:  # such as what a job raises in other threads
            end_without_memory(exc)
            self._fatal = exc
            log.exception("the main thread failed")
        try:
            self._drain()
        except BaseException as exc:
            end_without_memory(exc)
            self._fatal = self._fatal or exc
            log.exception("could not drain")
            self._exit_now("its jobs are left to whoever sees this process dead")
        self._end(threads, self._halt)
        # Last: without its session this replica counts as gone, and whoever sees that for long enough ends the process.
        self._end([heart], self._halt_heart)
        for pool in self._replica.pools:
            pool.stop()
        try:
            self._replica.leave()
        except (psycopg.Error, DispatcherError) as exc:
            log.warning("could not remove this replica's row, others will: %s", first_line(exc))
        self._ops.stop()
        log.info("stopped", extra={"replica": self._replica.id})

    def _end(self, threads: list[threading.Thread], halt: threading.Event) -> None:
        halt.set()
        self._replica.wake_all()
        until = time.monotonic() + END_S
        for thread in threads:
            thread.join(timeout=max(0.0, until - time.monotonic()))

    def _spawn(self, name: str, service: Service, halt: threading.Event) -> threading.Thread:
        def serve() -> None:
            try:
                while not halt.is_set():
                    service.step()
                    self._replica.pulse.beat(name)
            except DispatcherError as exc:
                self._fatal = exc
                log.error("%s", exc)
            except BaseException as exc:
                end_without_memory(exc)
                self._fatal = exc
                log.exception("the %s failed", name)
            finally:
                service.close()
                self._woken.set()

        self._replica.pulse.beat(name)
        thread = threading.Thread(target=serve, name=name, daemon=True)
        thread.start()
        return thread

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)
        self._woken.set()

    def _supervise(self) -> None:
        """Until told to stop: reloads, feeds the watchdog, says what this replica does, minds the trust."""
        # A twentieth of orphan_after: jobs that heed are seen to have stopped before the fence strikes.
        orphan_after_s = self._settings.orphan_after.total_seconds()
        pause_s = min(0.5, (sdnotify.watchdog_interval_s() or 2.0) / 4, orphan_after_s / 20)
        ready, said = False, ""
        while self._fatal is None:
            while self._signals:
                number = self._signals.pop(0)
                if number != signal.SIGHUP:
                    log.info("told to stop", extra={"signal": signal.Signals(number).name})
                    return
                self._reload()
            if not ready and self._replica.heart.connected:
                ready = True
                sdnotify.ready()
            if (saying := self._status()) != said:
                said = saying
                sdnotify.status(saying)
            self._look_after()
            if (unfit := self._fitness.unfit()) is not None:
                self._fatal = unfit
                log.error("%s: gives the lease away and ends, to be restarted", unfit)
                # Should it be so bad that the end hangs as well.
                self._replica.heart.strike_in(self._settings.shutdown_grace.total_seconds() + 3 * END_S)
                return
            self._woken.wait(pause_s)
            self._woken.clear()

    def _look_after(self) -> None:
        """Feeds the watchdog while all goes on; asks jobs to stop when the database has been silent for long."""
        self._lock_file.check()
        self._fitness.look()
        if self._replica.heart.progressing and self._fitness.stalled() is None:
            sdnotify.watchdog()
        if self._replica.heart.losing():
            self._replica.timekeeper.cancel_all(CancelReason.LOST)

    def _status(self) -> str:
        heart, running = self._replica.heart, self._replica.inflight.counts()
        for type in self._registry.types:
            self._replica.metrics.running.labels(type).set(running.get(type, 0))
        term = heart.term
        role = "no database" if not heart.connected else "standby" if term is None else f"leader, term {term}"
        trouble = ", outcomes cannot be recorded" if self._replica.trouble else ""
        return f"{role}, {sum(running.values())} running{trouble}"

    def _checks(self) -> dict[str, str | None]:
        heart = self._replica.heart
        return {
            "database": heart.trouble,
            "recording": self._replica.trouble,
            "heart": None if heart.progressing else "makes no progress",
            "services": None if (stalled := self._fitness.stalled()) is None else f"the {stalled} makes no progress",
            "draining": "stopping" if heart.draining.is_set() else None,
        }

    def _reload(self) -> None:
        sdnotify.reloading()
        try:
            settings = self._load_again()
        except DispatcherError as exc:
            log.error("the reload changed nothing: %s", exc)
        else:
            try:
                self._replica.set_limits(settings.limits)
            except (psycopg.Error, DispatcherError) as exc:
                log.warning("the new limits hold, but could not be shown in the database: %s", first_line(exc))
            log.info("reloaded the limits", extra={"limits": dict(settings.limits)})
        sdnotify.ready()

    def _drain(self) -> None:
        """Gives the lease away, lets running jobs finish within the grace, and gives back the rest."""
        sdnotify.stopping("draining")
        replica = self._replica
        replica.heart.drain()
        if isinstance(self._fatal, ReplicaGone) and len(replica.inflight):
            self._exit_now("this replica was removed while jobs ran on it")
        grace_s = self._settings.shutdown_grace.total_seconds()
        soft, hard, asked = time.monotonic() + SOFT_STOP * grace_s, time.monotonic() + grace_s, False
        while time.monotonic() < hard and self._worth_waiting():
            told_again, self._signals = set(self._signals) - {signal.SIGHUP}, []
            if told_again:
                soft, hard = time.monotonic(), min(hard, time.monotonic() + HURRY_S)
            if not asked and time.monotonic() >= soft:
                asked = True
                replica.timekeeper.cancel_all(CancelReason.SHUTDOWN)
            self._look_after()
            replica.settled.clear()
            if len(replica.inflight):
                replica.settled.wait(0.1)
            else:
                self._woken.wait(0.01)
        if replica.inflight.any_executing or (self._fatal is not None and len(replica.inflight)):
            self._give_back_running()

    def _worth_waiting(self) -> bool:
        if isinstance(self._fatal, Unfit):
            return self._fitness.worth_waiting()
        return len(self._replica.inflight) > 0 or self._replica.leading()

    def _give_back_running(self) -> None:
        """Writes what still runs as due only after this process is certainly gone; then the process goes."""
        replica = self._replica
        replica.heart.strike_in(HARD_EXIT_S)
        # What runs elsewhere does not end with this process: it stays running, and others take it when it must be over.
        left = [
            execution
            for execution in replica.inflight.snapshot()
            if execution.outcome is not None or not replica.pools.of(execution).remote
        ]
        said = "running jobs are left to who sees this process dead"
        try:
            with replica.session("stop") as conn:
                said = write_leftovers(conn, replica.id, left) or said
                conn.close()
        except (psycopg.Error, DispatcherError) as exc:
            log.error("could not give back running jobs, others will find them: %s", first_line(exc))
        self._exit_now(said)

    def _exit_now(self, reason: str) -> None:
        log.warning("ends at once: %s", reason)
        logging.shutdown()
        os._exit(0 if self._fatal is None else 1)
