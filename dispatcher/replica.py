"""A replica: its services, and what they tell one another.

listener ─▶ dispatch (heart) ─▶ pool ─▶ completer ─▶ dispatch: a slot is free
    ├─────▶ stager ──────────────┘            ├─────▶ stager: a job was put back
    └─────▶ linker ─▶ dispatch                ├─────▶ linker: a job has ended that others wait for
                                              └─────▶ tally ─▶ teller
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Protocol

from dispatcher.aftermath import Aftermath, Ended
from dispatcher.announcer import Announcer
from dispatcher.db import Connection, SessionLimits
from dispatcher.executor import Registry
from dispatcher.heart import Heart
from dispatcher.inflight import InFlight
from dispatcher.job import FINAL
from dispatcher.metrics import Metrics
from dispatcher.pool import Pools
from dispatcher.pools.attempt import Attempts
from dispatcher.pools.engines import check_pools, make_pools
from dispatcher.pulse import Pulse
from dispatcher.queries import outcomes, replicas
from dispatcher.queries.replicas import Process
from dispatcher.registration import publish_types, register
from dispatcher.runtime import JobRuntime
from dispatcher.services.completer import Completer
from dispatcher.services.dispatch import Dispatch
from dispatcher.services.gauges import Gauges
from dispatcher.services.lease import Lease
from dispatcher.services.linker import Linker
from dispatcher.services.listener import Listener
from dispatcher.services.pruner import Pruner
from dispatcher.services.rescuer import Rescuer
from dispatcher.services.scheduler import Scheduler
from dispatcher.services.stager import Stager
from dispatcher.services.teller import LOCK_S, Teller
from dispatcher.services.timekeeper import Timekeeper
from dispatcher.settings import Settings
from dispatcher.tally import RETRIED, Tally, Tries
from dispatcher.timelines import Timelines

log = logging.getLogger("dispatcher.replica")

FLEET_CHANNEL = "dispatcher_fleet"  # words to the replicas of all leases


class Service(Protocol):
    """Does one thing, again and again."""

    def step(self) -> None:
        """Waits for work, about a second at most, and does it."""

    def close(self) -> None:
        """Closes its session."""


class Replica:
    """Registers with the database as it is made; the heart and the services are then to be run, each in a thread, the
    services until `halt`, the heart until after them.
    """

    def __init__(self, settings: Settings, registry: Registry, process: Process, *, halt: threading.Event) -> None:
        self._settings = settings
        self._registry = registry
        self._halt = halt
        self._dsn = settings.dsn.get_secret_value()
        self._timelines = Timelines(self._dsn)
        check_pools(settings, registry)
        with self.session("start", lock_s=10.0) as conn:
            registered = register(conn, settings=settings, registry=registry, process=process)
        self.id, self._lease_number = registered.id, registered.lease
        self._installation, self._store = registered.installation, registered.store
        self._runtime = JobRuntime(
            dsn=self._dsn,
            installation=self._installation,
            owner=self.id,
            registry=registry,
            store=self._store,
            max_result_bytes=settings.max_result_bytes,
        )
        self.metrics = Metrics()
        for spec in self._registry:
            self.metrics.jobs.expect(spec.type)
            self.metrics.timed_out.labels(spec.type)
            if spec.hooks is not None:
                self.metrics.hook_errors.labels(spec.type)
        self.inflight = InFlight()
        self.settled = threading.Event()
        """Set whenever outcomes were recorded."""
        self.pulse = Pulse()
        self._build()

    def _build(self) -> None:
        s, metrics, stop = self._settings, self.metrics, self._halt
        self._announcer = Announcer(metrics=metrics)
        self._aftermath = Aftermath(runtime=self._runtime, registry=self._registry, hook_failed=self._on_hook_failed)
        self._tally = Tally(noted=lambda: self._teller.wake())  # noqa: PLW0108 - made below
        self._completer = Completer(
            open_session=self._opener("completer"),
            owner=self.id,
            inflight=self.inflight,
            metrics=metrics,
            tally=self._tally,
            settled=self._on_settled,
            failed=self._aftermath.failed,
            changed=self._announcer.tell,
            stop=stop,
        )
        self._runtime.progress = self._completer.report_progress
        attempts = Attempts(
            runtime=self._runtime, job_timeout_s=s.job_timeout.total_seconds(), hook_failed=self._on_hook_failed
        )
        self.pools = Pools(
            make_pools(
                s,
                self._registry,
                inflight=self.inflight,
                attempts=attempts,
                installation=self._installation,
                owner=self.id,
                trusted_from=lambda: self.heart.trusted_from,
                ended=self._completer.put,
            ),
            self._registry,
        )
        self.timekeeper = Timekeeper(
            inflight=self.inflight,
            metrics=metrics,
            stack_of=self.pools.stack,
            note_timed_out=self._completer.note_timed_out,
            lost=self.pools.lost,
            stop=stop,
        )
        self._dispatch = Dispatch(
            replica=self.id,
            lease_number=self._lease_number,
            registry=self._registry,
            inflight=self.inflight,
            pools=self.pools,
            before_run=lambda: self.heart.arm_fence(),  # noqa: PLW0108 - the heart is made below, and needs this
            metrics=metrics,
            changed=self._announcer.tell,
            aging_s=s.priority_aging.total_seconds() or None,
        )
        self._dispatch.set_limits(s.limits)
        self.heart = Heart(
            lease=Lease(
                open_session=self._open_lease_session,
                number=self._lease_number,
                replica=self.id,
                heartbeat_s=s.heartbeat_interval.total_seconds(),
                duration_s=s.lease_duration.total_seconds(),
                orphan_after_s=s.orphan_after.total_seconds(),
                metrics=metrics,
                stop=stop,
            ),
            dispatch=self._dispatch,
            pools=self.pools,
            inflight=self.inflight,
            began=self._on_term,
            canceled=self.timekeeper.cancel,
            replica=self.id,
            lease_number=self._lease_number,
            heartbeat_s=s.heartbeat_interval.total_seconds(),
            poll_interval_s=s.poll_interval.total_seconds(),
            orphan_after_s=s.orphan_after.total_seconds(),
            metrics=metrics,
            behind_s=lambda: self._completer.behind_s,
        )
        self._stager = Stager(
            open_session=self._opener("stager"),
            leading=self.leading,
            awake=lambda: self._dispatch.awake,
            promoted=self._dispatch.heard,
            marked=lambda: self._linker.wake(),  # noqa: PLW0108 - made below
            poll_interval_s=s.poll_interval.total_seconds(),
            metrics=metrics,
            stop=stop,
        )
        self._linker = Linker(
            open_session=self._opener("linker"),
            leading=self.leading,
            released=self._on_released,
            metrics=metrics,
            stop=stop,
        )
        self._scheduler = Scheduler(
            open_session=self._opener("scheduler"),
            leading=self.leading,
            fired=self._on_released,
            metrics=metrics,
            stop=stop,
        )
        self._rescuer = Rescuer(
            open_session=self._opener("rescuer"),
            replica=self.id,
            lease_number=self._lease_number,
            orphan_after_s=s.orphan_after.total_seconds(),
            overdue_grace_s=s.orphan_after.total_seconds(),
            registry=self._registry,
            leading=self.leading,
            rescued=self._on_rescued,
            failed=self._on_crashed,
            metrics=metrics,
            stop=stop,
        )
        self._teller = Teller(
            open_session=lambda: self.session("teller", lock_s=LOCK_S),
            tally=self._tally,
            replica=self.id,
            metrics=metrics,
            stop=stop,
        )
        self._listener = Listener(
            open_session=self._opener("listener"),
            channels=(f"dispatcher_{self._lease_number}", f"dispatcher_replica_{self.id}", FLEET_CHANNEL),
            heard=self._on_notification,
            connected=self._on_listening,
            metrics=metrics,
            stop=stop,
        )
        self.services: dict[str, Service] = {
            "completer": self._completer,
            "timekeeper": self.timekeeper,
            "listener": self._listener,
            "stager": self._stager,
            "linker": self._linker,
            "scheduler": self._scheduler,
            "rescuer": self._rescuer,
            "teller": self._teller,
            "pruner": Pruner(
                open_session=self._opener("pruner"),
                leading=self.leading,
                keep_succeeded=s.retention_succeeded,
                keep_failed=s.retention_failed,
                store=self._store,
                metrics=metrics,
                stop=stop,
            ),
            "gauges": Gauges(
                open_session=self._opener("gauges"),
                term=lambda: self.heart.term,
                replica=self.id,
                lease_number=self._lease_number,
                metrics=metrics,
                stop=stop,
            ),
        }

    def leading(self) -> bool:
        """True while this replica holds the lease."""
        return self.heart.term is not None

    @property
    def trouble(self) -> str | None:
        """What has kept outcomes from being recorded for more than a moment."""
        return self._completer.trouble

    def set_limits(self, limits: dict[str, int]) -> None:
        """Puts limits into effect at the next claim, then shows them in the database, which may raise psycopg.Error."""
        self._dispatch.set_limits(limits)
        with self.session("reload", lock_s=10.0) as conn:
            publish_types(conn, settings=self._settings, registry=self._registry, limits=limits)

    def wake_all(self) -> None:
        """Lets every service come back from its wait, to see that it should end."""
        for wake in (
            self._completer.wake,
            self._listener.wake,
            self._stager.wake,
            self._linker.wake,
            self._scheduler.wake,
            self._rescuer.wake,
            self._teller.wake,
            self._dispatch.woken.set,
        ):
            wake()

    def session(self, name: str, *, lock_s: float = 0.05) -> Connection:
        """A session of the daemon for `name`; it waits `lock_s` at most for a lock."""
        limits = SessionLimits(lock_s=lock_s, silence_s=self._settings.lease_duration.total_seconds())
        return self._timelines.open(name=f"dispatcher {name}", limits=limits, thorough=name == "start")

    def leave(self) -> None:
        """Removes this replica's row, unless a job of it still runs."""
        self._runtime.close()
        with self.session("leave") as conn:
            replicas.remove_replica(conn, self.id)

    def _opener(self, name: str) -> Callable[[], Connection]:
        def open_session() -> Connection:
            self.pulse.beat(name)
            return self.session(name)

        return open_session

    def _open_lease_session(self) -> Connection:
        duration = self._settings.lease_duration.total_seconds()
        # A statement must fail before the lease does, and the lease before a standby evicts (Lease, EVICTION_MARGIN).
        limits = SessionLimits(statement_s=0.6 * duration, idle_s=duration, silence_s=duration)
        return self._timelines.open(name=f"dispatcher lease {self.id}", limits=limits, thorough=True)

    def _on_term(self) -> None:
        self._stager.wake_soon()
        self._linker.wake_soon()
        self._scheduler.wake_soon()
        self._rescuer.wake()

    def _on_settled(self, conn: Connection, rescheduled: bool, marked: bool) -> None:
        self._dispatch.woken.set()
        self.settled.set()
        if rescheduled:
            self._stager.wake()
        if marked:
            self._linker.wake()
        if not self.leading():  # the leader elsewhere counts our jobs against its limits
            outcomes.wake_leader(conn, self._lease_number)

    def _on_hook_failed(self, type: str) -> None:
        self.metrics.hook_errors.labels(type).inc()

    def _on_rescued(self) -> None:
        self._dispatch.recount()
        self._stager.wake()
        self._linker.wake()

    def _on_crashed(self, ended: Sequence[Ended]) -> None:
        tries = defaultdict[str, Tries](Tries)
        for job, outcome in ended:
            end = outcome.state if outcome.state in FINAL else RETRIED
            tries[job.type].ends.append(end)
            if job.tenant:
                tries[job.type].tenanted.append((job.tenant, end, None, 0.0))
        self._tally.add(tries)
        self._aftermath.failed(ended)

    def _on_released(self) -> None:
        self._dispatch.heard()
        self._stager.wake()

    def _on_notification(self, channel: str, payload: str) -> None:
        word, _, rest = payload.partition(" ")
        match word:
            case "":
                self._dispatch.heard(rest or None)
                self._stager.wake_soon()  # which looks for marks as well
            case "schedules":
                self._scheduler.wake()
            case "control":
                self._dispatch.heard_control()
            case "cancel":  # anybody may notify: the row says whether it is true
                self.heart.look_for_cancels()
            case "resign" if not rest or rest.isdigit():
                self.heart.ask_to_resign(int(rest) if rest else None)
            case "check":
                self.heart.look_at_own()
            case "watch":
                self._announcer.heard()
            case _:
                log.warning("a notification nobody understands", extra={"channel": channel, "payload": payload[:100]})

    def _on_listening(self) -> None:
        """Whatever was missed while nobody listened is looked for now."""
        self._dispatch.recount()
        self._stager.wake()
        self._linker.wake()
        self._scheduler.wake()
