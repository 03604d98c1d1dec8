"""Lists of jobs; failed and other ended ones run again or removed by a filter."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Unpack

import psycopg

from dispatcher.filters import EndedFilter, Wanted, checked_limit, encode_filter
from dispatcher.front.base import AsyncFront, Front
from dispatcher.job import JobInfo, Page
from dispatcher.options import Duration
from dispatcher.queries import ended, listing
from dispatcher.queries.ended import Purged, Retried
from dispatcher.queries.operation import Operation

States = str | Sequence[str] | None
Time = datetime | Duration | None
Infos = list[JobInfo]


class EndedJobs(Front):
    """A part of the blocking client."""

    def page(
        self,
        *,
        type: str | None = None,
        state: States = None,
        tenant: str | None = None,
        kind: str | None = None,
        since: Time = None,
        until: Time = None,
        parent: int | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> Page:
        """One page of jobs, the newest first, found in milliseconds however many jobs there are.

        It looks at a bounded number of jobs, so it may be short, or empty, while `next` says that there is more:
        pass that as `before`. `state`: one or several. `kind`: of the last error, such as `timeout`; without `state`
        among failed, partial and canceled jobs. `since` and `until`: an aware time or how long ago, of the job's end,
        or of its creation if it has not ended. `parent`: the id of a batch. Raises WrongState, InvalidOption.
        """
        wanted = Wanted.make(type=type, state=state, tenant=tenant, kind=kind, since=since, until=until, parent=parent)
        return self._do(listing.page_jobs(wanted, before=before, limit=limit))

    def count_ended(self, **filters: Unpack[EndedFilter]) -> int:
        """How many ended jobs match: a preview of retry_where and purge. Without `state`, failed ones.

        Filters: type, tenant, state (one or several), kind and message of the last error (message: a part of it),
        since and until (an aware time or how long ago, of its end), limit. Raises InvalidOption.
        """
        return self._do(ended.count_ended(encode_filter(filters)))

    def retry_where(self, *, conn: psycopg.Connection[Any] | None = None, **filters: Unpack[EndedFilter]) -> Retried:
        """Runs ended jobs again, each as by retry, the newest first; filters as for count_ended.

        Passes by, and counts as skipped, jobs that somebody holds locked and those whose unique key is taken. Without
        `conn` it commits in steps of up to 1,000 jobs, and what is done stays if it is interrupted. A filter that
        says nothing is refused unless `all=True`. Raises InvalidOption; nothing was done then.
        """
        return self._do(_retry_where(filters), conn)

    def purge(self, *, conn: psycopg.Connection[Any] | None = None, **filters: Unpack[EndedFilter]) -> Purged:
        """Removes ended jobs for good; filters, steps and errors as for retry_where, `state` may be succeeded, too.

        Passes by, and counts as skipped, jobs that somebody holds locked, the children of an open batch, and those
        after which an unfinished job is to run.
        """
        return self._do(_purge(filters), conn)

    # The last method, since from here on `list` means this one.
    def list(
        self,
        *,
        type: str | None = None,
        state: States = None,
        tenant: str | None = None,
        before: int | None = None,
        limit: int = 50,
        kind: str | None = None,
        since: Time = None,
        until: Time = None,
        parent: int | None = None,
    ) -> Infos:
        """Jobs, the newest first, as page finds them; it goes on until it has `limit` of them or there are no more.

        Where few of many millions of jobs match that may take seconds; page gives control back in between. `before` an
        id, to go on from the last job of the list before.
        """
        wanted = Wanted.make(type=type, state=state, tenant=tenant, kind=kind, since=since, until=until, parent=parent)
        return self._do(listing.list_jobs(wanted, before=before, limit=limit))


class AsyncEndedJobs(AsyncFront):
    """A part of the async client."""

    async def page(
        self,
        *,
        type: str | None = None,
        state: States = None,
        tenant: str | None = None,
        kind: str | None = None,
        since: Time = None,
        until: Time = None,
        parent: int | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> Page:
        """As Client.page."""
        wanted = Wanted.make(type=type, state=state, tenant=tenant, kind=kind, since=since, until=until, parent=parent)
        return await self._do(listing.page_jobs(wanted, before=before, limit=limit))

    async def count_ended(self, **filters: Unpack[EndedFilter]) -> int:
        """As Client.count_ended."""
        return await self._do(ended.count_ended(encode_filter(filters)))

    async def retry_where(
        self, *, conn: psycopg.AsyncConnection[Any] | None = None, **filters: Unpack[EndedFilter]
    ) -> Retried:
        """As Client.retry_where."""
        return await self._do(_retry_where(filters), conn)

    async def purge(
        self, *, conn: psycopg.AsyncConnection[Any] | None = None, **filters: Unpack[EndedFilter]
    ) -> Purged:
        """As Client.purge."""
        return await self._do(_purge(filters), conn)

    # The last method, since from here on `list` means this one.
    async def list(
        self,
        *,
        type: str | None = None,
        state: States = None,
        tenant: str | None = None,
        before: int | None = None,
        limit: int = 50,
        kind: str | None = None,
        since: Time = None,
        until: Time = None,
        parent: int | None = None,
    ) -> Infos:
        """As Client.list."""
        wanted = Wanted.make(type=type, state=state, tenant=tenant, kind=kind, since=since, until=until, parent=parent)
        return await self._do(listing.list_jobs(wanted, before=before, limit=limit))


def _retry_where(filters: EndedFilter) -> Operation[Retried]:
    return ended.retry_where(encode_filter(filters), _limit(filters))


def _purge(filters: EndedFilter) -> Operation[Purged]:
    return ended.purge(encode_filter(filters), _limit(filters))


def _limit(filters: EndedFilter) -> int | None:
    limit = filters.get("limit")
    return None if limit is None else checked_limit(limit)
