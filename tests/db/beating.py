"""A heart that a test steps by hand, with a pool that only collects."""

from __future__ import annotations

from collections.abc import Callable

from dispatcher.db import Connection
from dispatcher.heart import Heart
from dispatcher.metrics import Metrics
from dispatcher.services.lease import Lease
from tests.db.contenders import backend
from tests.db.leading import Leading
from tests.db.running import until


class Beating:
    """A heart that a test steps, in its term: its jobs only collect."""

    def __init__(self, conn: Connection, lease: Lease, replica: int, leading: Leading | None = None) -> None:
        self.leading = leading or Leading(conn, owner=replica)
        self.lease = lease
        self.began = 0
        self.canceled: list[int] = []
        """Running jobs that it found somebody wants to stop."""
        self.behind_s = 0.0
        """For how long it can record no outcome, as its completer would say."""
        self.heart = Heart(
            lease=lease,
            dispatch=self.leading.dispatch,
            pools=self.leading.pools,
            inflight=self.leading.inflight,
            began=self._begin,
            canceled=self.canceled.extend,
            replica=replica,
            lease_number=1,
            heartbeat_s=0.1,
            poll_interval_s=0.1,
            orphan_after_s=30.0,
            metrics=Metrics(),
            behind_s=lambda: self.behind_s,
        )

    def _begin(self) -> None:
        self.began += 1

    def lead(self) -> None:
        self.until(lambda: self.lease.term is not None)

    def until(self, true: Callable[[], object]) -> None:
        """Steps until it is so."""

        def stepped() -> object:
            self.heart.step()
            return true()

        until(stepped)

    def taken(self) -> list[int]:
        return [each.claimed.id for each in self.leading.pool.taken]

    def close(self) -> None:
        """Ends its jobs and its session: the fence, which is that of the tests' own process, is gone with them."""
        self.leading.end(self.taken())
        self.heart.close()

    @property
    def stands(self) -> tuple[int, int | None]:
        """Its session and its term."""
        return backend(self.lease), self.lease.term
