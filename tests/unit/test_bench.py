"""What the bench computes."""

import pytest

from tests.bench.__main__ import main
from tests.bench.scenarios.measures import percentile


def test_percentile_is_a_value_that_was_measured() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, percent) for percent in (1, 50, 80, 99, 100)] == [1.0, 3.0, 4.0, 5.0, 5.0]
    assert percentile([7.0], 50) == 7.0


@pytest.mark.parametrize("arguments", [["--only", "drain,nonsense"], ["--jobs", "0"], ["--rounds", "x"]])
def test_bad_arguments_are_refused_before_anything_starts(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err
