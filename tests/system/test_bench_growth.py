"""The picture of growth is made, from drains far too small to mean anything."""

import json
from pathlib import Path

import pytest

from dispatcher.embedded import EmbeddedPostgres

pytestmark = pytest.mark.system


def test_every_axis_is_measured_and_drawn(
    server: EmbeddedPostgres, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="installed by make bench-growth only")
    from tests.bench.growth import Sizes, main  # noqa: PLC0415 - they need it as well
    from tests.bench.picture import PANELS  # noqa: PLC0415

    picture = tmp_path / "growth.png"
    sizes = Sizes(jobs=200, pending=(300,), finished=(50,), tenants=(3,), threads=(4,), payload=(1024,))
    assert main(["--rounds", "1", "--out", str(picture), "--dsn", server.dsn], sizes) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["measure"].rpartition("_")[0] for line in lines} == PANELS.keys()
    assert all(line["value"] > 0 and "postgresql" in line for line in lines)
    assert picture.read_bytes().startswith(b"\x89PNG")
