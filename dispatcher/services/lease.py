"""The lease session: one connection that carries liveness, the wait for the lease, and every claim.

    away ──open, take liveness──▶ standby ──the lock is granted──▶ leader
      ▲                             │  ▲                             │
      └────── any error, any doubt ─┴──┼─────────────────────────────┤
                                       └──── resign (lock given back)┘

Invariants:
- The lock is taken once a session. To be the leader is to have this session; there is no flag to go stale. Whatever
  fails on it, the session is closed: PostgreSQL then frees the lock, and nothing that was begun on it can commit
  afterwards. Two exceptions, in which the server has undone a statement and the session is as it was: it is out of
  disk, memory or room for locks, or a table is locked, when it may refuse a new session as well, and jobs live by
  this one; or an administrator canceled a statement of the leader. A canceled wait closes it, for the lock may have
  been granted.
- A bounded wait may answer "no" while the server keeps the grant; wait_lease looks again and answers by what the
  session holds.
- Trust is counted from before a request was sent, and on this session only: another session's answer proves nothing
  about ours.

What ends a leader: its process dies (the kernel closes the session); it falls silent (idle_session_timeout, at
lease_duration); its host or the network goes (tcp_user_timeout, keepalives); it hangs within a statement
(statement_timeout); its backend is stuck sending and none of these reaches it (a standby that sees it unchanged for
longer than the lease ends it by pg_terminate_backend).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import NoReturn

import psycopg

from dispatcher.db import Connection
from dispatcher.errors import DatabaseUnavailable, DispatcherError
from dispatcher.fence import boottime
from dispatcher.metrics import Metrics
from dispatcher.queries import lease as statements
from dispatcher.queries import replicas
from dispatcher.trouble import LONGEST_PAUSE_S, Trouble, refused, undone

log = logging.getLogger("dispatcher.lease")

ASK_EVERY = 5  # looks at another's lease: how often a standby that can run more asks for it
EVICTION_MARGIN = 1.2  # of the lease: the server's own time-outs come first
CANCELED_EARLY = 0.3  # of the lease, half of statement_timeout: what is canceled sooner, an administrator has canceled


class ReplicaGone(DispatcherError):
    """This replica's row was removed: its jobs were given to others, so it must not go on."""


class Lease:
    """Contends for the lease named by `number` as `replica`."""

    def __init__(
        self,
        *,
        open_session: Callable[[], Connection],
        number: int,
        replica: int,
        heartbeat_s: float,
        duration_s: float,
        orphan_after_s: float,
        metrics: Metrics,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_session = open_session
        self._number = number
        self._replica = replica
        self._heartbeat_s = heartbeat_s
        self.duration_s = duration_s
        """Silence after which the server ends this session."""
        self._orphan_after_s = orphan_after_s
        self._metrics = metrics
        self._stop = stop
        self._clock = clock
        self._pause_s = 0.0
        self._registered: datetime | None = None
        self._trouble = Trouble("the lease session", log=log, metrics=metrics)
        self._seen: tuple[statements.Holder, float] | None = None
        self._looks = 0
        self._last_beat = 0.0
        self._asked_at = 0.0  # the same in boottime(), which goes on while the machine sleeps
        self._promoted = False  # since the last leader that claimed
        self.conn: Connection | None = None
        self.term: int | None = None
        """The term while this session holds the lease, else None."""
        self.claim_from = 0.0
        """No claim before this (clock seconds): a promoted server may have lost claims that still run."""
        self.hold_until = 0.0
        """No claim, and no wait for the lease, before this (clock seconds): the database was in trouble just now."""
        self.trusted_from: float | None = None
        """boottime() before the latest request that this session's server answered."""

    @property
    def trouble(self) -> str | None:
        """What is wrong, if it has been for more than a moment. Any thread."""
        return "no session" if self.conn is None else self._trouble.lasting

    def connect(self) -> bool:
        """Opens the session and takes the liveness lock; False where that has to be tried again."""
        if self._pause_s:
            self._stop.wait(self._pause_s)
        self._pause_s = min(2.0, max(0.05, self._pause_s * 2))
        try:
            conn = self._open_session()
        except DatabaseUnavailable as exc:
            self._failed(exc)
            return False
        self.conn = conn
        try:
            sent = boottime()
            registered = replicas.registered_at(conn, self._replica)
            self._registered = self._registered or registered
            if registered != self._registered:  # and we must not end the session of who has our id now
                self._gone()
            if not replicas.take_liveness(conn, self._replica):
                replicas.end_own_session(conn, self._replica)
                self.drop()
                return False
            if replicas.raise_incarnation(conn, self._replica) is None:
                self._gone()
            self.trusted_from, self._asked_at, self._last_beat = sent, sent, self._clock()
        except psycopg.Error as exc:
            self._failed(exc, keep=False)  # without a new incarnation nobody may rely on this session
            return False
        return True

    def contend(self) -> bool:
        """Waits for the lease inside the server, a heartbeat at most; True once it is ours."""
        assert self.conn is not None
        sent = boottime()
        try:
            held, holder = statements.wait_lease(self.conn, self._number, round(self._heartbeat_s * 900))
            self.trusted_from = sent
            if held:
                self._take_over()
            else:
                self._watch(holder)
        except psycopg.Error as exc:
            self._failed(exc)
            self._let_go()  # what was refused may be what came after the grant, and nobody may hold it and not lead
        return self.term is not None

    def may_claim(self) -> bool:
        """False until what a promoted server may have lost has been waited for."""
        assert self.conn is not None
        if self._clock() < self.claim_from:
            return False
        if self._promoted:
            statements.note_timeline(self.conn, self._number)
            self._promoted = False
        return True

    def beat(self, *, running: bool = True) -> bool:
        """Once a heartbeat: a request that proves this session, and that this replica, whether or not it runs jobs, is
        still known. True if it was time.
        """
        if self.conn is None or self.beat_in() > 0:
            return False
        self._asked_at = sent = boottime()
        self._last_beat = self._clock()
        try:
            known = statements.beat(self.conn, self._replica, running=running)
        except psycopg.Error as exc:
            self._failed(exc, took_s=boottime() - sent)
            return True
        self._pause_s = 0.0  # not before: a session that is lost again at once must not be opened in a tight loop
        self._trouble.over(after_s=2 * LONGEST_PAUSE_S)
        self.trusted_from = sent
        if not known:
            self._gone()
        return True

    def beat_in(self) -> float:
        """Seconds until the next beat is due; 0 if it is."""
        if boottime() - self._asked_at > 2 * self._heartbeat_s:
            return 0.0  # the machine slept: the clock says that little time has passed, and the server knows better
        return max(0.0, self._last_beat + self._heartbeat_s - self._clock())

    def resign(self) -> None:
        """Gives the lease away and keeps the session, for the jobs that still run here live by it."""
        if self.conn is None or self.term is None:
            return
        log.info("gives the lease away", extra={"term": self.term})
        self._lead(None)
        self._let_go()

    def failed(self, exc: psycopg.Error, *, keep: bool = True, took_s: float = math.inf) -> None:
        """Somebody else's statement failed on this session, after so long: it is not to be trusted any more, unless the
        server has undone it and we may `keep` what the session holds.
        """
        self._failed(exc, keep=keep, took_s=took_s)

    def drop(self) -> None:
        """Closes the session, and with it every lock it held."""
        conn, self.conn, self._seen = self.conn, None, None
        self._lead(None)
        if conn is not None:
            conn.close()

    def _gone(self) -> NoReturn:
        self.drop()
        raise ReplicaGone(f"replica {self._replica} was removed from the database; start it anew")

    def _take_over(self) -> None:
        assert self.conn is not None
        # In a statement after the grant: an older snapshot would miss the former leader's last claims.
        began = statements.begin_term(self.conn, self._number, self._replica)
        if began is None:
            self.drop()
            return
        term, self._promoted = began
        self.claim_from = self._clock()
        if self._promoted:
            self.claim_from += self._orphan_after_s
            log.warning(
                "the server was promoted: waits before the first claim", extra={"seconds": self._orphan_after_s}
            )
        self._lead(term)
        log.info("leads", extra={"term": term})

    def _let_go(self) -> None:
        """Gives the lock back if it is held, and with the session if need be."""
        if self.conn is not None:
            try:
                statements.resign_lease(self.conn, self._number)
            except psycopg.Error as exc:
                self._failed(exc, keep=False)

    def _watch(self, holder: statements.Holder | None) -> None:
        """Ends a holder whose session has not changed for longer than the lease by our own clock, and is not idle."""
        assert self.conn is not None
        now = self._clock()
        if self._looks % ASK_EVERY == 0 and statements.ask_for_handover(self.conn, self._number, self._replica):
            log.info("asks for the lease: the leader lacks types that this replica can run")
        self._looks += 1
        if holder is None or self._seen is None or self._seen[0] != holder:
            self._seen = None if holder is None else (holder, now)
        elif holder.state != "idle" and now - self._seen[1] > self.duration_s * EVICTION_MARGIN:
            if statements.evict_holder(self.conn, self._number, holder):
                log.warning("ended the session of a silent leader", extra={"backend_pid": holder.pid})
            self._seen = None

    def _lead(self, term: int | None) -> None:
        if (term is None) != (self.term is None):
            self._metrics.transitions.inc()
            self._metrics.leader.set(term is not None)
        if term is not None:
            self._metrics.term.set(term)
        elif self.term is not None:
            log.info("no longer leads", extra={"term": self.term})
        self.term = term

    def _failed(self, exc: Exception, *, keep: bool = True, took_s: float = math.inf) -> None:
        canceled_early = self.term is not None and took_s < CANCELED_EARLY * self.duration_s
        kept = keep and (undone if canceled_early else refused)(self.conn, exc)
        self.hold_until = self._clock() + self._trouble.note(exc, kept=kept)
        if not kept:
            self.drop()
