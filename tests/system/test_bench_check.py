"""The check after each drain finds what would make a measure worthless."""

from collections.abc import Iterator

import pytest

from dispatcher.embedded import EmbeddedPostgres
from tests.bench.check import check
from tests.bench.scenarios.draining import Backlog, filled
from tests.bench.stage import BenchFailed, Stage

pytestmark = pytest.mark.system


@pytest.fixture
def drained(server: EmbeddedPostgres) -> Iterator[Stage]:
    """Three jobs that are recorded as succeeded, beside finished ones."""
    with filled(server.dsn, Backlog(3, finished=2)) as own:
        own.do("update dispatcher.job set state = 'succeeded', attempt = 1, finished_at = now() where id > 0")
        yield own


def tell(own: Stage, *lines: str) -> None:
    own._runs.write_text("".join(f"{line}\n" for line in lines))


def test_a_drain_as_it_should_be_passes(drained: Stage) -> None:
    tell(drained, "ran 2,0,1", "most bench.limited=3")
    check(drained, 3)


@pytest.mark.parametrize("ran", ["0,1", "0,1,1", "0,1,2,2"])
def test_a_job_that_ran_twice_or_never(drained: Stage, ran: str) -> None:
    tell(drained, f"ran {ran}")
    with pytest.raises(BenchFailed, match="twice or never"):
        check(drained, 3)


@pytest.mark.parametrize("wrong", ["attempt = 2", "state = 'failed'", "state = 'pending'", "finished_at = null"])
def test_a_job_that_is_not_recorded_as_it_ran(drained: Stage, wrong: str) -> None:
    tell(drained, "ran 0,1,2")
    drained.do(f"update dispatcher.job set {wrong} where id = 2")
    with pytest.raises(BenchFailed, match="3 jobs ran"):
        check(drained, 3)


def test_more_at_once_than_the_limit(drained: Stage) -> None:
    tell(drained, "ran 0,1,2", "most bench.limited=4")
    with pytest.raises(BenchFailed, match="at once"):
        check(drained, 3)
