"""Rules and dashboard name only metrics that exist; promtool checks the rest."""

import json
import re
from pathlib import Path

import pytest

from dispatcher.metrics import Metrics

SYSTEMD = Path(__file__).parents[2] / "systemd"
DOCS = Path(__file__).parents[2] / "docs"


def exposed() -> set[str]:
    names = set()
    for family in Metrics().registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        names |= {family.name + suffix for suffix in suffixes}
    return names


@pytest.mark.parametrize("file", ["prometheus-rules.yml", "grafana-dashboard.json"])
def test_no_alert_waits_for_a_metric_that_never_comes(file: str) -> None:
    text = (SYSTEMD / file).read_text()
    named = set(re.findall(r"\bdispatcher_[a-z_]+", text))
    assert named
    assert named <= exposed()


def test_every_alert_is_explained() -> None:
    alerts = re.findall(r"- alert: (\w+)", (SYSTEMD / "prometheus-rules.yml").read_text())
    explained = (DOCS / "operations.md").read_text()
    assert alerts
    assert [alert for alert in alerts if not re.search(rf"\b{alert}\b", explained)] == []


def test_the_dashboard_is_one() -> None:
    dashboard = json.loads((SYSTEMD / "grafana-dashboard.json").read_text())
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
