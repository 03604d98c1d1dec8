"""The bench works: each scenario once, far too small to mean anything."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dispatcher.embedded import EmbeddedPostgres
from tests.bench import __main__ as bench
from tests.bench import growth
from tests.bench.__main__ import main, play, summarize
from tests.bench.scenarios import SCENARIOS
from tests.bench.scenarios.measures import Size

pytestmark = pytest.mark.system

TINY = Size(
    jobs=300,
    singles=20,
    clients=2,
    lines=50,
    pickups=10,
    kills=1,
    stops=1,
    lease_s=2.1,
    handovers=1,
    pending=600,
    finished=(100,),
    types=5,
    tenants=7,
    spins=2,
    steps=100_000,
    quick=100,
    workers=1,
    places=2,
    load_s=0.5,
    requests_s=0.3,
    idle_s=0.5,
    settle_s=0,
)
MAY_BE_ZERO = ("dask", "idle", "stop")


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_measures_something(server: EmbeddedPostgres, name: str) -> None:
    measures = play(name, server.dsn, TINY)
    assert measures
    if name not in MAY_BE_ZERO:
        assert all(value > 0 for value, _ in measures.values())


@pytest.mark.skipif(not bench.can_count_statements(), reason="this PostgreSQL lacks pg_stat_statements")
def test_a_server_of_the_bench_counts_statements() -> None:
    with bench.server(None) as dsn:
        measures = play("idle", dsn, replace(TINY, idle_s=1.5))  # a stand-by makes one now and then
    assert measures["leader_statements"][0] > 0


def test_output_is_json_lines_with_versions(server: EmbeddedPostgres, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--jobs", "200", "--rounds", "1", "--only", "drain", "--dsn", server.dsn]
    assert main(arguments) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["measure"] for line in lines] == [
        "jobs_per_second",
        "floor_jobs_per_second",
        "share_of_floor",
    ]
    assert lines[0].keys() >= {"scenario", "value", "unit", "dispatcher", "postgresql", "python"}


def test_a_database_that_cannot_be_reached_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dsn", "host=/nonexistent", "--only", "drain"]) == 1
    assert capsys.readouterr().err.startswith("bench: ")


def test_the_median_of_the_rounds_is_told_with_its_range() -> None:
    (line,) = summarize("drain", [{"rate": (value, "1/s")} for value in (5.0, 1.0, 3.0)])
    assert (line["value"], line["min"], line["max"], line["rounds"]) == (3.0, 1.0, 5.0, 3)


def test_growth_is_drawn(server: EmbeddedPostgres, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "growth.png"
    arguments = ["--rounds", "1", "--jobs", "100", "--largest", "4", "--output", str(picture), "--dsn", server.dsn]
    assert growth.main(arguments) == 0
    points = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {point["axis"] for point in points} == {axis.title for axis in growth.AXES if min(axis.points) <= 4}
    assert all(point["value"] > 0 for point in points)
    assert picture.read_bytes().startswith(b"\x89PNG")
