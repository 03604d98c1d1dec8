"""Why a job does not run."""

from __future__ import annotations

from dispatcher.front.base import AsyncFront, Front
from dispatcher.queries.explain import Explanation, explain_job


class ExplainFront(Front):
    """The blocking part."""

    def explain(self, id: int) -> Explanation:
        """Why the job does not run: what it waits for, which limit is reached and by whom, whether anybody leads.

        `reasons` come the most decisive first, each with a `kind` for programs (no_replica, no_leader,
        leader_lacks_type, paused, limit, tenant_limit, rate, overall, threads, ahead, next, waits_for, scheduled,
        running, batch, ended), a line of text, and details: times as ISO 8601 texts, durations in seconds.
        Raises JobNotFound.
        """
        return self._do(explain_job(id))


class AsyncExplainFront(AsyncFront):
    """The async part."""

    async def explain(self, id: int) -> Explanation:
        """As Client.explain."""
        return await self._do(explain_job(id))
