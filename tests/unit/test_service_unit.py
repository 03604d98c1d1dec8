"""The unit's numbers beside the settings' defaults: together they must be in order."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from dispatcher.settings import Settings, load

UNIT = Path(__file__).parents[2] / "systemd" / "dispatcher@.service"


@pytest.fixture
def unit() -> dict[str, str]:
    """The settings of the unit that stand in it once."""
    lines = [line for line in UNIT.read_text(encoding="utf-8").splitlines() if "=" in line and line[0] not in "#["]
    return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def defaults() -> Settings:
    return load({"dsn": "dbname=x"})[0]


def seconds(text: str) -> timedelta:
    return timedelta(seconds=float(text.removesuffix("s")))


def test_a_stop_is_not_cut_short_and_ends_before_others_take_the_jobs(unit: dict[str, str], defaults: Settings) -> None:
    assert defaults.shutdown_grace < seconds(unit["TimeoutStopSec"]) < defaults.orphan_after


def test_a_hung_replica_is_ended_before_others_take_its_jobs_and_even_if_it_is_stopped(
    unit: dict[str, str], defaults: Settings
) -> None:
    assert seconds(unit["WatchdogSec"]) < defaults.orphan_after
    assert unit["WatchdogSignal"] == "SIGKILL", "a stopped process ignores any other"


def test_instances_of_a_host_can_prove_each_other_s_death(unit: dict[str, str]) -> None:
    """They are one user, and share the folder of their locks, which outlives each of them."""
    assert unit["User"] == "dispatcher"
    assert "DynamicUser" not in unit
    assert (unit["RuntimeDirectory"], unit["RuntimeDirectoryPreserve"]) == ("dispatcher", "yes")
    assert "PrivatePIDs" not in unit
    assert "PrivateUsers" not in unit
