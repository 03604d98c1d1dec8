"""What a token of one tenant may see and name. Pure.

Unique keys and the names of schedules are unique over all tenants. So that one tenant can neither meet nor notice
another's, those that come through a token of a tenant are stored with the tenant in front, and shown without it. The
tenant is written so that no two pairs of tenant and name are stored as one.
"""

from __future__ import annotations

import re
from dataclasses import replace

from dispatcher.errors import InvalidOption, InvalidSchedule, ScheduleNotFound
from dispatcher.queries.explain import Explanation, Reason
from dispatcher.queries.fleet import TypeInfo
from dispatcher.queries.schedules import ScheduleInfo

_PLAIN = re.compile(r"[A-Za-z0-9_-]")


def stored_key(tenant: str | None, key: str) -> str:
    """A unique key as it is stored; sql/queries/get_documents.sql takes the tenant off again."""
    if tenant is None:
        return key
    stored = f"{len(tenant)}:{tenant}:{key}"
    if not key or len(stored) > 200:
        raise InvalidOption(f"unique_key must be a text of 1 to {200 - len(stored) + len(key)} characters")
    return stored


def stored_name(tenant: str | None, name: str) -> str:
    """The name of a schedule as it is stored."""
    if tenant is None:
        return name
    stored = _front(tenant) + name
    if not name or len(stored) > 200:
        raise InvalidSchedule(
            f"a schedule is named by 1 to {max(0, 200 - len(_front(tenant)))} letters, digits and the signs _ . : / -"
        )
    return stored


def known_name(tenant: str | None, name: str) -> str:
    """The same, of a schedule that should exist; raises ScheduleNotFound."""
    try:
        return stored_name(tenant, name)
    except InvalidSchedule:
        raise ScheduleNotFound(f"there is no schedule {name!r:.200}") from None


def shown_schedule(tenant: str | None, schedule: ScheduleInfo) -> ScheduleInfo | None:
    """The schedule as a token of this tenant sees it; None where it does not."""
    if tenant is None:
        return schedule
    if schedule.options.get("tenant") != tenant or not schedule.name.startswith(_front(tenant)):
        return None
    options = {name: value for name, value in schedule.options.items() if name != "unique_key"}
    if key := schedule.options.get("unique_key"):
        options["unique_key"] = key.removeprefix(f"{len(tenant)}:{tenant}:")
    return replace(
        schedule, name=schedule.name.removeprefix(_front(tenant)), options=options, changed_by="", paused_by=None
    )


def shown_type(tenant: str | None, type: TypeInfo) -> TypeInfo:
    """The type as a token of this tenant sees it."""
    if tenant is None:
        return type
    own = {name: limit for name, limit in type.tenant_limits.items() if name == tenant}
    return replace(type, tenant_limits=own, paused_by=None)


def _front(tenant: str) -> str:
    # Of the signs that a name may have; a full stop starts the number of one that it may not.
    return "".join(char if _PLAIN.fullmatch(char) else f".{ord(char):x}." for char in tenant) + "/"


def shown_explanation(tenant: str | None, found: Explanation) -> Explanation:
    """The explanation as a token of this tenant sees it: nothing of other tenants' jobs, nor of the fleet."""
    if tenant is None:
        return found
    reasons = [_shown_reason(reason) for reason in found.reasons]
    summary = f"job {found.id} is {found.state}: {reasons[0].text}" if reasons else found.summary
    return replace(found, reasons=reasons, summary=summary)


_OF_ALL = {
    "no_replica": "no living replica runs jobs of its type",
    "leader_lacks_type": "the leader has no executor for its type",
    "no_leader": "no replica leads",
    "paused": "its type is paused",
    "limit": "the limit of its type is reached",
    "overall": "the limit over all types is reached",
    "threads": "all threads of the leader are busy",
    "running": "it runs",
}
_OWN_DETAILS = frozenset({"since", "attempt", "cancel_requested", "timed_out", "timeout_s", "past_timeout"})


def _shown_reason(reason: Reason) -> Reason:
    if reason.kind not in _OF_ALL:
        return reason
    details = {name: value for name, value in reason.details.items() if name in _OWN_DETAILS}
    return Reason(reason.kind, _OF_ALL[reason.kind], details)
