"""Rules: what holds for a type, as an operator says (dispatcher.control), else the setting `limits`, else the code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from dispatcher.executor import Executor
from dispatcher.rate import default_burst

TypeTenant = tuple[str, str]


class Control(NamedTuple):
    """What an operator said about a type (`tenant` empty) or about one tenant of it; None: nothing."""

    type: str
    tenant: str
    max_running: int | None
    tenant_max_running: int | None
    rate: float | None
    burst: int | None
    paused: bool


@dataclass(frozen=True, slots=True)
class Rule:
    """What holds for a type. None: no limit."""

    limit: int | None = None
    tenant_limit: int | None = None
    """Of each tenant that is not in `tenants`; jobs without a tenant have none."""
    tenants: Mapping[str, int] = field(default_factory=dict)
    rate: float | None = None
    """Starts a second."""
    burst: int = 1
    paused: bool = False


def rule_of(spec: Executor, limits: Mapping[str, int], controls: Iterable[Control]) -> Rule:
    """The rule of one type. `limits` are the settings', `controls` what operators said about this type."""
    said = Control(spec.type, "", None, None, None, None, False)
    tenants: dict[str, int] = {}
    for control in controls:
        if not control.tenant:
            said = control
        elif control.max_running is not None:
            tenants[control.tenant] = control.max_running
    rate = said.rate if said.rate is not None else spec.rate
    burst = said.burst if said.burst is not None else spec.burst
    return Rule(
        limit=said.max_running if said.max_running is not None else limits.get(spec.type, spec.limit),
        tenant_limit=said.tenant_max_running if said.tenant_max_running is not None else spec.tenant_limit,
        tenants=tenants,
        rate=rate,
        burst=burst if burst is not None else 1 if rate is None else default_burst(rate),
        paused=said.paused,
    )
