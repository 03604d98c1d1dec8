"""The comparison works: this project and the floor, far too small to mean anything; peers need a network."""

import json
from typing import Any

import pytest

from dispatcher.embedded import EmbeddedPostgres
from tests.bench.peers import contest
from tests.bench.peers.__main__ import FLOOR, main, summarize
from tests.bench.peers.catalog import OURS
from tests.bench.peers.table import markdown

pytestmark = pytest.mark.system


def test_ours_is_measured_like_a_peer(
    postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("SINGLES", 20), ("PICKUPS", 5), ("FLOOR_ROWS", 1000)):
        monkeypatch.setattr(contest, name, value)
    assert main([OURS, "--jobs", "300", "--rounds", "1", "--markdown", "--dsn", postgres.tcp_dsn]) == 0
    output = capsys.readouterr().out.splitlines()
    lines: list[dict[str, Any]] = [json.loads(line) for line in output if line.startswith("{")]
    measured = {(line["peer"], line["measure"]): line["value"] for line in lines}
    assert measured.keys() >= {(FLOOR, "drain"), (OURS, "drain"), (OURS, "enqueue_single"), (OURS, "pickup_p99")}
    assert all(value > 0 for value in measured.values())
    assert any(line.startswith("| dispatcher 0.") for line in output)


def test_ratios_are_of_the_same_round() -> None:
    """Twice as fast in each round, while the machine was ten times slower in one of them."""
    rounds = [
        {"dispatcher": {"drain": (2.0 * speed, "1/s")}, "other": {"drain": (1.0 * speed, "1/s")}}
        for speed in (1000.0, 100.0, 900.0)
    ]
    ours, theirs = summarize(rounds)
    assert (ours["value"], ours["min"], ours["max"]) == (1800.0, 200.0, 2000.0)
    assert theirs["ours_to_theirs"] == 2.0
    assert "| other | 900 |" in markdown(rounds, {}, "x")


def test_an_unknown_peer_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["nobody"])
    assert "there is no 'nobody'" in capsys.readouterr().err
