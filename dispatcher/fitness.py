"""Fitness: whether a replica had better be restarted, since what has gone wrong in it ends with its process only."""

from __future__ import annotations

from dispatcher.errand import Errand
from dispatcher.errors import DispatcherError
from dispatcher.replica import Replica

STALL_S = 90.0  # a statement may take 30 s, and one turn has several
SPARED = ("teller", "pruner", "gauges")  # nothing of a job waits for them: they are no reason to disturb any


class Unfit(DispatcherError):
    """This replica goes on, but had better be restarted."""


class Fitness:
    """Judges by what the timekeeper and the pulse have seen; `most_stuck` None: stuck jobs are no reason."""

    def __init__(self, replica: Replica, *, most_stuck: int | None) -> None:
        self._replica = replica
        self._most_stuck = most_stuck

    def look(self) -> None:
        """Sees who has got on. Whoever has been still for long is woken: it rests, or else it hangs and stays still."""
        pulse = self._replica.pulse
        pulse.look()
        for name, service in self._replica.services.items():
            if isinstance(service, Errand) and pulse.still_s(name) > STALL_S / 2:
                service.wake()

    def unfit(self) -> Unfit | None:
        """Why it had better be restarted, if it had."""
        keeper = self._replica.timekeeper
        if self._most_stuck is not None and keeper.lost > self._most_stuck:
            types = ", ".join(sorted({execution.claimed.type for execution in keeper.stuck}))
            return Unfit(
                f"jobs past their timeout hold {keeper.lost} threads or places ({types}), "
                f"and max_stuck_threads is {self._most_stuck}"
            )
        if dead := [pool.name for pool in self._replica.pools if pool.dead]:
            return Unfit(f"the pool {dead[0]} runs nothing any more")
        return None if (stalled := self.stalled()) is None else Unfit(f"the {stalled} makes no progress")

    def stalled(self) -> str | None:
        """The service that hangs, if one does without which jobs would wait."""
        heart, pulse = self._replica.heart, self._replica.pulse
        # While it connects, to look up a name may take longer than any turn of a heart that has its session.
        if pulse.still_s("heart") > (heart.hang_s if heart.connected else STALL_S):
            return "heart"
        names = (name for name in self._replica.services if name not in SPARED)
        return next((name for name in names if pulse.still_s(name) > STALL_S), None)

    def worth_waiting(self) -> bool:
        """Whether there is anything in a replica that is unfit which may still come to its end by itself."""
        replica, stalled = self._replica, self.stalled()
        stuck = {execution.key for execution in replica.timekeeper.stuck}
        return (stalled != "heart" and replica.leading()) or any(
            execution.key not in stuck and (execution.outcome is None or stalled != "completer")
            for execution in replica.inflight.snapshot()
        )
