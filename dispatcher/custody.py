"""Custody: what runs here, against what the database believes runs here.

They differ after a lost session: a claim whose answer was lost is recorded and runs nowhere; and where a standby was
promoted that had not received our claims, what runs is recorded nowhere.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping

from dispatcher.db import Connection
from dispatcher.inflight import InFlight
from dispatcher.job import CancelReason
from dispatcher.queries import claims, outcomes
from dispatcher.rules import TypeTenant

log = logging.getLogger("dispatcher.heart")


class Custody:
    """Used by the heart's thread, but for `trust` and `look_again`. `set_unknown` is told of jobs that are
    neither run here nor could be given back yet: they count against their limits.
    """

    def __init__(
        self,
        *,
        inflight: InFlight,
        replica: int,
        lease_number: int,
        set_unknown: Callable[[Mapping[TypeTenant, int]], None],
    ) -> None:
        self._inflight = inflight
        self._replica = replica
        self._lease_number = lease_number
        self._set_unknown = set_unknown
        self._look = False
        self._held: float | None = None
        self._known = True  # what runs here was looked for in the database on this session

    def trust(self, answered_from: float | None) -> float | None:
        """Since when this replica may count on its jobs, given the last answer on its lease session. Any thread.

        A new session's answers count only once nothing runs here that its database does not know: a standby that was
        promoted may have lost our claims, and who leads there waits orphan_after, no longer, for us to stop.
        """
        return answered_from if self._held is None else self._held

    def look_again(self) -> None:
        """Compares at the next turn. Any thread."""
        self._look = True

    def lose_session(self, answered_from: float | None) -> None:
        """From here on trust is counted from before, until a new session has shown what its database knows."""
        self._held, self._known, self._look = self.trust(answered_from), False, True

    def compare(self, conn: Connection) -> None:
        """Stops what the database does not know, and gives back what it believes we run and we do not."""
        if self._look:
            self._stop_disowned(conn)
            self._give_back_unknown(conn)
        if self._held is not None and self._known and not self._runs_lost():
            self._held = None

    def _stop_disowned(self, conn: Connection) -> None:
        executions = {execution.key: execution for execution in self._inflight.snapshot()}
        disowned = claims.list_disowned(conn, self._replica, list(executions)) if executions else set()
        for key in disowned:
            execution = executions[key]
            execution.lost = True  # a thread that is about to start it looks at this after ctx is set
            if execution.ctx is not None:
                execution.ctx.cancel(CancelReason.LOST)
        if disowned:
            log.warning(
                "the database does not know of jobs that run here: they are to stop", extra={"jobs": len(disowned)}
            )
        self._known = True

    def _runs_lost(self) -> bool:
        return any(execution.lost and execution.outcome is None for execution in self._inflight.snapshot())

    def _give_back_unknown(self, conn: Connection) -> None:
        self._look = False
        rows = claims.own_running(conn, self._replica)
        unknown = {(id, attempt): lane for id, attempt, lane in rows if (id, attempt) not in self._inflight}
        if unknown:
            given_back = claims.release_jobs(conn, self._replica, list(unknown))
            log.warning("gave back jobs whose claim was not answered", extra={"jobs": len(given_back)})
            outcomes.wake_leader(conn, self._lease_number)
            unknown = {key: lane for key, lane in unknown.items() if key not in given_back}
        self._set_unknown(Counter(unknown.values()))  # somebody holds their rows locked: they count, and stay
        if unknown:
            self._look = True
