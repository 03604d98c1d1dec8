"""What the pages about the built-in executors say is what the code does."""

import re
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from pydantic import BaseModel

from dispatcher.executor import Executor

DOCS = Path(__file__).parents[2] / "docs"
COMMAND = re.compile(r"dispatcher enqueue (\w+) '(\{.*?\})'(?:\s|\))", re.DOTALL)
SQL = re.compile(r"dispatcher\.enqueue\('(\w+)', '(\{.*?\})'[,)]", re.DOTALL)


def built_in() -> Iterator[Executor]:
    """All types of the executors that come with the package."""
    for entry in entry_points(group="dispatcher.executors"):
        if entry.value.startswith("dispatcher_executors."):
            for found in vars(entry.load()).values():
                spec = getattr(found, "__dispatcher_executor__", None)
                if isinstance(spec, Executor):
                    yield spec


SPECS = {spec.type: spec for spec in built_in()}


def shown(spec: Executor) -> list[str]:
    """Its limit, time and tries in the words of the table."""
    assert spec.timeout_s is not None
    minutes = spec.timeout_s / 60
    time = f"{minutes / 60:g} h" if minutes % 60 == 0 else f"{minutes:g} min"
    after = "tried again" if spec.retry.retry_timeouts else "final"
    return [str(spec.limit), f"{time}, {after}", str(spec.retry.max_attempts)]


def test_table_has_each_type_with_its_limits() -> None:
    lines = (DOCS / "executors.md").read_text(encoding="utf-8").splitlines()
    rows = [re.split(r" *\| *", line.strip("| ")) for line in lines if line.startswith("| [`")]
    said = {row[0].partition("`")[2].partition("`")[0]: row[3:] for row in rows}
    assert said == {name: shown(spec) for name, spec in SPECS.items()}


EXAMPLES = [
    pytest.param(type, payload, id=f"{page.stem}-{type}-{at}")
    for page in sorted((DOCS / "executors").glob("*.md"))
    for form in (COMMAND, SQL)
    for at, (type, payload) in enumerate(form.findall(page.read_text(encoding="utf-8")))
]


def test_each_page_has_an_example() -> None:
    assert len(EXAMPLES) >= len(list((DOCS / "executors").glob("*.md")))


@pytest.mark.parametrize(("type", "payload"), EXAMPLES)
def test_example_of_a_page_is_a_payload(type: str, payload: str) -> None:
    model = SPECS[type].payload
    assert model is not None
    assert issubclass(model, BaseModel)
    model.model_validate_json(payload)
