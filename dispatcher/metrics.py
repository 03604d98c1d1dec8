"""Metrics, named as users know them. Hot ones are plain numbers, turned into samples only when somebody scrapes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from dispatcher.tally import RETRIED, Tries, spread

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)


class _Buckets:
    """A histogram of one type, written by one thread."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)
        self.total = 0.0

    def observe(self, values: list[float]) -> None:
        spread(values, SECONDS, self.counts)
        self.total += sum(values)

    def cumulative(self) -> list[tuple[str, float]]:
        running, buckets = 0, []
        for bound, count in zip((*map(str, map(float, SECONDS)), "+Inf"), self.counts, strict=True):
            running += count
            buckets.append((bound, float(running)))
        return buckets


class JobMetrics(Collector):
    """Per-job figures by type. Written by the completer's thread alone."""

    def __init__(self) -> None:
        self.finished: dict[tuple[str, str], int] = defaultdict(int)
        self.retries: dict[str, int] = defaultdict(int)
        self.duration: dict[str, _Buckets] = defaultdict(_Buckets)
        self.wait: dict[str, _Buckets] = defaultdict(_Buckets)

    def expect(self, type: str) -> None:
        """Shows a type from the start, so that its first events are seen as an increase."""
        for state in ("succeeded", "partial", "failed", "canceled"):
            self.finished[type, state] += 0
        self.retries[type] += 0

    def add(self, tries: Mapping[str, Tries]) -> None:
        """Adds a group of tries that were recorded, by type."""
        for type, group in tries.items():
            for end, count in group.ended().items():
                if end == RETRIED:
                    self.retries[type] += count
                else:
                    self.finished[type, end] += count
            if group.durations:
                self.duration[type].observe(group.durations)
                self.wait[type].observe(group.waits)

    def collect(self) -> Iterator[Metric]:
        """Samples for a scrape."""
        finished = CounterMetricFamily(
            "dispatcher_jobs_finished", "Jobs that ended, by final state.", labels=["type", "state"]
        )
        for (type, state), count in list(self.finished.items()):
            finished.add_metric([type, state], count)
        yield finished
        retries = CounterMetricFamily("dispatcher_job_retries", "Failed tries that are tried again.", labels=["type"])
        for type, count in list(self.retries.items()):
            retries.add_metric([type], count)
        yield retries
        yield self._histogram("dispatcher_job_duration_seconds", "Time in the executor.", self.duration)
        yield self._histogram("dispatcher_job_wait_seconds", "From when a job was due until it was claimed.", self.wait)

    @staticmethod
    def _histogram(name: str, text: str, by_type: dict[str, _Buckets]) -> Metric:
        family = HistogramMetricFamily(name, text, labels=["type"])
        for type, buckets in list(by_type.items()):
            family.add_metric([type], buckets.cumulative(), buckets.total)
        return family


class Metrics:
    """All metrics of one replica, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.jobs = JobMetrics()
        r.register(self.jobs)
        self.leader = Gauge("dispatcher_leader", "1 on the replica that leads.", registry=r)
        self.term = Gauge("dispatcher_term", "The latest term this replica has led.", registry=r)
        self.transitions = Counter(
            "dispatcher_leader_transitions", "Times this replica began or ended to lead.", registry=r
        )
        self.by_state = Gauge(
            "dispatcher_jobs",
            "Jobs by state, counted now and then by the leader; ended well are left out.",
            ["type", "state"],
            registry=r,
        )
        self.oldest = Gauge(
            "dispatcher_oldest_pending_seconds", "How long the oldest pending job has been due.", ["type"], registry=r
        )
        self.running = Gauge("dispatcher_running", "Jobs of the type that run on this replica.", ["type"], registry=r)
        self.limit = Gauge("dispatcher_limit", "How many of the type may run over the fleet.", ["type"], registry=r)
        self.rate = Gauge("dispatcher_rate", "Starts a second that the type is allowed.", ["type"], registry=r)
        self.paused = Gauge("dispatcher_paused", "1 while an operator has paused the type.", ["type"], registry=r)
        self.claim_seconds = Histogram("dispatcher_claim_seconds", "One claim.", buckets=SECONDS, registry=r)
        self.claim_size = Histogram("dispatcher_claim_batch_size", "Jobs in a claim.", buckets=SIZES, registry=r)
        self.settle_seconds = Histogram(
            "dispatcher_settle_seconds", "One group of outcomes.", buckets=SECONDS, registry=r
        )
        self.settle_size = Histogram("dispatcher_settle_batch_size", "Outcomes in a group.", buckets=SIZES, registry=r)
        self.stale = Counter(
            "dispatcher_stale_outcomes", "Outcomes that came too late and changed nothing.", registry=r
        )
        self.rescued = Counter("dispatcher_jobs_rescued", "Jobs taken from vanished owners.", ["reason"], registry=r)
        self.timed_out = Counter("dispatcher_jobs_timed_out", "Jobs that outlived their timeout.", ["type"], registry=r)
        self.hook_errors = Counter(
            "dispatcher_hook_errors", "Hooks that raised; the outcome stood.", ["type"], registry=r
        )
        self.stuck = Gauge(
            "dispatcher_stuck_threads", "Threads that are not back although their job is over.", registry=r
        )
        self.listener = Gauge("dispatcher_listener_connected", "1 while notifications arrive.", registry=r)
        self.last_tick = Gauge(
            "dispatcher_last_tick_timestamp_seconds", "When the main loop last made progress.", registry=r
        )
        self.schedules_fired = Counter(
            "dispatcher_schedules_fired", "Jobs that schedules enqueued.", ["type"], registry=r
        )
        self.stopped_schedules = Gauge(
            "dispatcher_schedule_errors", "Schedules that an error keeps from going on; on the leader.", registry=r
        )
        self.batches_ended = Counter("dispatcher_batches_ended", "Batches that ended.", ["state"], registry=r)
        for state in ("succeeded", "partial", "failed", "canceled"):
            self.batches_ended.labels(state)
        for reason in ("dead", "vanished"):  # shown from the start, so that the first rescue is seen as an increase
            self.rescued.labels(reason)
        self.db_errors = Counter("dispatcher_db_errors", "Errors of the database or of the way to it.", registry=r)
