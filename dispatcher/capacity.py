"""Capacity: how many more jobs may run, by every rule there is. It decides; services/dispatch.py reads and claims.

What runs is counted from two sources that only this process changes or that only shrink: what is in flight here, and
the rows that run elsewhere (other replicas do not claim while we hold the lease). No counter is kept that could leak.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from dispatcher.bucket import Bucket
from dispatcher.executor import Registry
from dispatcher.inflight import InFlight
from dispatcher.rules import Control, Rule, TypeTenant, rule_of

UNLIMITED = 1_000_000
GATHER_S = 0.005  # a fast rate's tokens gather so long: a round for each would cost more than the jobs


class Capacity:
    """The rules of all registered types, and what runs."""

    def __init__(self, *, registry: Registry, inflight: InFlight) -> None:
        self._registry = registry
        self._inflight = inflight
        self._limits: Mapping[str, int] = {}
        self._controls: list[Control] = []
        self._elsewhere: Mapping[TypeTenant, int] = {}
        self._elsewhere_by_type: Counter[str] = Counter()
        self._unknown: Mapping[TypeTenant, int] = {}
        self._unknown_by_type: Counter[str] = Counter()
        self._buckets: dict[str, Bucket] = {}
        self.rules: dict[str, Rule] = {spec.type: rule_of(spec, {}, ()) for spec in registry}

    def set_limits(self, limits: Mapping[str, int]) -> None:
        """Those of the settings: by type, `*` over all."""
        self._limits = dict(limits)
        self._decide()

    def set_controls(self, controls: list[Control], now: float) -> bool:
        """What operators say now; True where a rule has changed."""
        before, self._controls = self.rules, controls
        self._decide()
        self._go_by_rates(now)
        return self.rules != before

    def set_elsewhere(self, running: Mapping[TypeTenant, int]) -> None:
        """What runs on other replicas."""
        self._elsewhere, self._elsewhere_by_type = running, _by_type(running)

    def set_unknown(self, running: Mapping[TypeTenant, int]) -> None:
        """Rows that say they run here although nothing does, and that could not be given back yet."""
        self._unknown, self._unknown_by_type = running, _by_type(running)

    @property
    def shared(self) -> bool:
        """True while anything runs elsewhere."""
        return bool(self._elsewhere)

    @property
    def paused(self) -> set[str]:
        """The types that are paused."""
        return {type for type, rule in self.rules.items() if rule.paused}

    @property
    def overall(self) -> int | None:
        """The limit over all types."""
        return self._limits.get("*")

    def begin(self, now: float) -> None:
        """A term begins: with empty buckets, which fill from now on."""
        self._buckets.clear()
        self._go_by_rates(now)

    def left(self) -> int:
        """How many more may run, of whatever type."""
        if self.overall is None:
            return UNLIMITED
        foreign = self._elsewhere_by_type.total() + self._unknown_by_type.total()
        return self.overall - len(self._inflight) - foreign

    def slots(self, type: str) -> int:
        """How many more of a type may run by its limit; 0 while it is paused."""
        rule = self.rules[type]
        if rule.paused:
            return 0
        if rule.limit is None:
            return UNLIMITED
        foreign = self._elsewhere_by_type[type] + self._unknown_by_type[type]
        return rule.limit - self._inflight.running(type) - foreign

    def tenant_slots(self, type: str, tenant: str) -> int:
        """How many more of a type's tenant may run by that tenant's limit."""
        rule = self.rules[type]
        limit = rule.tenants.get(tenant, rule.tenant_limit) if tenant else None
        if limit is None:
            return UNLIMITED
        lane = (type, tenant)
        foreign = self._elsewhere.get(lane, 0) + self._unknown.get(lane, 0)
        return limit - self._inflight.running_of(type, tenant) - foreign

    def starts(self, type: str, now: float) -> int | None:
        """How many of a type may start by its rate; None without one."""
        bucket = self._bucket(type, now)
        return None if bucket is None else bucket.available(now)

    def wait_s(self, type: str, now: float) -> float:
        """Seconds until its rate lets a job of this type start."""
        bucket = self._bucket(type, now)
        return 0.0 if bucket is None else bucket.wait_s(now, GATHER_S)

    def started(self, counts: Mapping[str, int], now: float) -> None:
        """So many of each type were claimed."""
        for type, count in counts.items():
            if bucket := self._bucket(type, now):
                bucket.take(count, now)

    def not_started(self, counts: Mapping[str, int], now: float) -> None:
        """So many of each type were claimed and given back: else a slow rate waited anew for a start it never made."""
        self.started({type: -count for type, count in counts.items()}, now)

    def _go_by_rates(self, now: float) -> None:
        # At once, not when the first job comes: it would find an empty bucket however long nothing had started.
        for type in self.rules:
            self._bucket(type, now)

    def _bucket(self, type: str, now: float) -> Bucket | None:
        rule = self.rules[type]
        if rule.rate is None:
            self._buckets.pop(type, None)
            return None
        bucket = self._buckets.get(type)
        if bucket is None:
            bucket = self._buckets[type] = Bucket(rule.rate, rule.burst, now)
        bucket.change(rule.rate, rule.burst, now)
        return bucket

    def _decide(self) -> None:
        by_type: dict[str, list[Control]] = {}
        for control in self._controls:
            by_type.setdefault(control.type, []).append(control)
        self.rules = {spec.type: rule_of(spec, self._limits, by_type.get(spec.type, ())) for spec in self._registry}


def _by_type(running: Mapping[TypeTenant, int]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for (type, _), count in running.items():
        counts[type] += count
    return counts
