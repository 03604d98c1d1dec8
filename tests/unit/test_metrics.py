"""Metrics under the names that dashboards rely on, in a form that Prometheus reads."""

from __future__ import annotations

import threading

import pytest
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from dispatcher.metrics import SECONDS, Metrics

# As promised to users: name, kind, labels.
PROMISED = {
    "dispatcher_leader": ("gauge", ()),
    "dispatcher_term": ("gauge", ()),
    "dispatcher_leader_transitions_total": ("counter", ()),
    "dispatcher_jobs": ("gauge", ("type", "state")),
    "dispatcher_oldest_pending_seconds": ("gauge", ("type",)),
    "dispatcher_running": ("gauge", ("type",)),
    "dispatcher_limit": ("gauge", ("type",)),
    "dispatcher_rate": ("gauge", ("type",)),
    "dispatcher_paused": ("gauge", ("type",)),
    "dispatcher_jobs_finished_total": ("counter", ("type", "state")),
    "dispatcher_job_retries_total": ("counter", ("type",)),
    "dispatcher_job_duration_seconds": ("histogram", ("type",)),
    "dispatcher_job_wait_seconds": ("histogram", ("type",)),
    "dispatcher_claim_seconds": ("histogram", ()),
    "dispatcher_claim_batch_size": ("histogram", ()),
    "dispatcher_settle_seconds": ("histogram", ()),
    "dispatcher_settle_batch_size": ("histogram", ()),
    "dispatcher_stale_outcomes_total": ("counter", ()),
    "dispatcher_jobs_rescued_total": ("counter", ("reason",)),
    "dispatcher_jobs_timed_out_total": ("counter", ("type",)),
    "dispatcher_batches_ended_total": ("counter", ("state",)),
    "dispatcher_schedules_fired_total": ("counter", ("type",)),
    "dispatcher_schedule_errors": ("gauge", ()),
    "dispatcher_hook_errors_total": ("counter", ("type",)),
    "dispatcher_stuck_threads": ("gauge", ()),
    "dispatcher_listener_connected": ("gauge", ()),
    "dispatcher_last_tick_timestamp_seconds": ("gauge", ()),
    "dispatcher_db_errors_total": ("counter", ()),
}

ODD = 'a type "with" quotes\\ and\nlines'


@pytest.fixture
def metrics() -> Metrics:
    """Each metric has been used."""
    metrics = Metrics()
    for type in ("quick", ODD):
        metrics.jobs.finished[type, "succeeded"] += 3
        metrics.jobs.retries[type] += 1
        for seconds in (0.0, 0.001, 0.3, 1e6):
            metrics.jobs.duration[type].observe([seconds])
            metrics.jobs.wait[type].observe([seconds])
        metrics.by_state.labels(type, "pending").set(5)
        for gauge in (metrics.oldest, metrics.running, metrics.limit, metrics.rate, metrics.paused):
            gauge.labels(type).set(1)
        metrics.timed_out.labels(type).inc()
        metrics.schedules_fired.labels(type).inc()
    metrics.rescued.labels("dead").inc()
    for histogram in (metrics.claim_seconds, metrics.claim_size, metrics.settle_seconds, metrics.settle_size):
        histogram.observe(1)
    return metrics


def families(metrics: Metrics) -> dict[str, Metric]:
    text = generate_latest(metrics.registry).decode()
    return {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in text_string_to_metric_families(text)
        if not family.name.endswith("_created")
    }


def test_names_kinds_and_labels_are_as_promised(metrics: Metrics) -> None:
    found = families(metrics)
    assert set(found) == set(PROMISED)
    for name, (kind, labels) in PROMISED.items():
        assert found[name].type == kind, name
        assert found[name].documentation, name
        for sample in found[name].samples:
            assert set(sample.labels) - {"le"} == set(labels), name


def test_no_label_grows_without_bound(metrics: Metrics) -> None:
    """A job's id or its tenant as a label would make a series each."""
    labels = {label for family in families(metrics).values() for sample in family.samples for label in sample.labels}
    assert labels == {"type", "state", "reason", "le"}


def test_openmetrics_readers_read_it_too(metrics: Metrics) -> None:
    families = list(parse_openmetrics(generate_openmetrics(metrics.registry).decode()))  # type: ignore[no-untyped-call]
    assert {"dispatcher_jobs_finished", "dispatcher_job_duration_seconds"} <= {family.name for family in families}


def test_any_type_s_name_survives(metrics: Metrics) -> None:
    finished = families(metrics)["dispatcher_jobs_finished_total"]
    assert {sample.labels["type"]: sample.value for sample in finished.samples} == {"quick": 3, ODD: 3}


def test_histograms_add_up(metrics: Metrics) -> None:
    samples = [s for s in families(metrics)["dispatcher_job_wait_seconds"].samples if s.labels["type"] == "quick"]
    buckets = {s.labels["le"]: s.value for s in samples if s.name.endswith("_bucket")}
    assert len(buckets) == len(SECONDS) + 1
    assert buckets["0.001"] == 2  # at the bound counts as within
    assert buckets["0.25"] == 2
    assert buckets["0.5"] == 3
    assert buckets["3600.0"] == 3
    assert buckets["+Inf"] == 4
    (count,) = [s.value for s in samples if s.name.endswith("_count")]
    (total,) = [s.value for s in samples if s.name.endswith("_sum")]
    assert count == 4
    assert total == pytest.approx(1e6 + 0.301)
    assert list(buckets.values()) == sorted(buckets.values())


def test_scrape_while_jobs_end(metrics: Metrics) -> None:
    """New types appear while Prometheus reads."""
    stop = threading.Event()

    def work() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            metrics.jobs.finished[f"type {n % 500}", "succeeded"] += 1
            metrics.jobs.duration[f"type {n % 500}"].observe([0.1])

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(5):
            generate_latest(metrics.registry)
    finally:
        stop.set()
        worker.join()


def test_fresh_replica_shows_what_alerts_look_at() -> None:
    """Counters without labels are there before they count: rate() needs the zero."""
    found = families(Metrics())
    for name, (kind, labels) in PROMISED.items():
        if not labels and kind != "histogram":
            (sample,) = found[name].samples
            assert sample.value == 0, name
