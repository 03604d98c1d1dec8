"""Lists of jobs, page by page, as operations.

Each page is found by whatever leads to such jobs quickly, and looks at a bounded number of rows: among millions of
jobs that are not wanted a page may have few jobs, or none, although there are more behind it.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from dispatcher.filters import MAX_ID, Wanted, checked_limit, find_by
from dispatcher.job import JobInfo, Page
from dispatcher.queries.jobs import job_info, whole
from dispatcher.queries.operation import Operation, Query
from dispatcher.queries.serving import get_documents

PAGE = 1_000  # jobs at once for a longer list
PAGE_CHARS = 8_000_000
FIRST_DOCUMENTS = 20

# Rows that a page looks at, at most: 20 to 100 ms.
EXAMINE = {
    "find_jobs": 50_000,
    "find_blocked_jobs": 20_000,
    "find_children": 5_000,
    "find_scheduled_jobs": 100_000,
}
EXAMINE_PENDING = 5_000


def page_jobs(wanted: Wanted, *, before: int | None, limit: int) -> Operation[Page]:
    """One page, of jobs with lower ids than `before`."""
    checked_limit(limit)
    params = yield from _params(wanted)
    return (yield from _page(wanted, params, _bounded("before", before), limit))


def page_documents(
    wanted: Wanted, *, before: int | None, limit: int, own: bool
) -> Operation[tuple[list[str], int | None]]:
    """The same as JSON texts, and the `before` of the page behind; no more of large ones than a page can hold."""
    params = yield from _params(wanted)
    ids, following = yield from _ids(wanted, params, _bounded("before", before), limit)
    texts: list[str] = []
    size, at, take = 0, 0, FIRST_DOCUMENTS
    while at < len(ids) and size < PAGE_CHARS:
        found = yield from get_documents(ids[at : at + take], wanted.states, own=own)
        texts += [document.text for document in found]
        size += sum(len(document.text) for document in found)
        at = min(at + take, len(ids))
        take = max(1, min(PAGE, (PAGE_CHARS - size) * at // max(1, size)))  # as many of that size as there is room for
    return texts, ids[at - 1] if at < len(ids) else following


def list_jobs(wanted: Wanted, *, before: int | None, limit: int) -> Operation[list[JobInfo]]:
    """The newest, over as many pages as it takes."""
    checked_limit(limit, least=0)
    params = yield from _params(wanted)
    jobs: list[JobInfo] = []
    following: int | None = _bounded("before", before)
    while following is not None and len(jobs) < limit:
        page = yield from _page(wanted, params, following, min(limit - len(jobs), PAGE))
        jobs += page.jobs
        following = page.next
    return jobs


def _page(wanted: Wanted, params: dict[str, Any], before: int, limit: int) -> Operation[Page]:
    ids, following = yield from _ids(wanted, params, before, limit)
    rows = (yield Query("list_jobs", {"ids": ids, "states": params["states"]}, reads=True)) if ids else []
    return Page([job_info(row) for row in rows], following)


def _ids(wanted: Wanted, params: dict[str, Any], before: int, limit: int) -> Operation[tuple[list[int], int | None]]:
    ids, following = yield from _find(find_by(wanted), wanted, params, before, limit)
    if ids is None:  # too many to sort, or too many turns: by the walk that finds any job
        ids, following = yield from _find("find_jobs", wanted, params, before, limit)
    return ids or [], following


def _find(
    name: str, wanted: Wanted, params: dict[str, Any], before: int, limit: int
) -> Operation[tuple[list[int] | None, int | None]]:
    examine = EXAMINE.get(name, EXAMINE_PENDING if wanted.narrow else limit)
    bounds = {"before": before, "limit": limit, "examine": max(limit, examine)}
    rows = yield Query(name, {**params, **bounds}, reads=True)
    ids, following = rows[0]
    return ids, following


def _params(wanted: Wanted) -> Operation[dict[str, Any]]:
    """As the statements take them. How long ago something was is counted once, from the database's time."""
    params = asdict(wanted) | {"states": None if wanted.states is None else [state.value for state in wanted.states]}
    if wanted.parent is not None:
        params["parent"] = _bounded("parent", wanted.parent)  # no job has an id beyond
    if any(isinstance(params[name], float) for name in ("since", "until")):
        now: datetime = (yield Query("get_time", reads=True))[0][0]
        for name in ("since", "until"):
            if isinstance(params[name], float):
                params[name] = now - timedelta(seconds=params[name])
    return params


def _bounded(name: str, id: int | None) -> int:
    return MAX_ID if id is None else max(0, min(whole(name, id), MAX_ID))
