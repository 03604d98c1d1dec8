"""What the README names exists, and what exists it names."""

import ast
import re
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import click
import pytest
from dispatcher.sql import migrations
from prometheus_client.samples import Sample

import dispatcher
from dispatcher.cli import main
from dispatcher.context import Context
from dispatcher.metrics import Metrics
from dispatcher.options import Options
from dispatcher.settings import Settings, format_duration

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text of one section, down to the next of its level."""
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of all table rows whose first cell is code."""
    for line in text.splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in re.split(r" ?\| ", line.strip("| "))]


def test_every_setting_is_listed_with_its_default() -> None:
    listed = {cells[0].strip("`"): cells[1].strip("`") for cells in rows(section("Settings"))}
    defaults = {}
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if name == "processes":
            default = 2  # as many as there are cores; README shows a machine with two
        shown = format_duration(default) if isinstance(default, timedelta) else default
        defaults[name] = str(shown) if isinstance(shown, int | str) and shown else ""
    assert listed == defaults


def test_every_command_is_listed() -> None:
    def leaves(group: click.Group, path: str) -> Iterator[str]:
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            if isinstance(command, click.Group):
                yield from leaves(command, f"{path} {name}")
            else:
                yield f"{path} {name}"

    assert {cells[0].strip("`") for cells in rows(section("Command line"))} == set(leaves(main, "dispatcher"))


def test_flags_of_the_options_exist() -> None:
    flags = set(re.findall(r"`(--[a-z-]+)", section("Enqueueing")))
    enqueue = main.get_command(click.Context(main), "enqueue")
    assert enqueue is not None
    assert flags <= {name for parameter in enqueue.params for name in parameter.opts}


def test_every_metric_is_listed_with_its_labels() -> None:
    metrics = Metrics()
    for labelled in (
        metrics.by_state,
        metrics.oldest,
        metrics.running,
        metrics.limit,
        metrics.rate,
        metrics.paused,
        metrics.rescued,
        metrics.timed_out,
        metrics.batches_ended,
        metrics.schedules_fired,
        metrics.hook_errors,
    ):
        labelled.labels(*["x"] * len(labelled._labelnames))
    for kind in (metrics.jobs.finished, metrics.jobs.retries):
        kind["x", "y"] += 0  # type: ignore[index] # either key will do: it is only to be there
    metrics.jobs.duration["x"].observe([1])
    metrics.jobs.wait["x"].observe([1])

    def name(kind: str, sample: Sample) -> str | None:
        if kind == "histogram":
            return sample.name.removesuffix("_count") if sample.name.endswith("_count") else None
        return None if sample.name.endswith("_created") else sample.name

    exported = {
        found
        for family in metrics.registry.collect()
        for sample in family.samples
        if (found := name(family.type, sample))
    }
    table = "\n".join(line for line in section("Metrics and health").splitlines() if line.startswith("|"))
    assert set(re.findall(r"\bdispatcher_[a-z_]+", table)) == exported


def test_sql_functions_and_error_codes_are_those_of_the_schema() -> None:
    schema = "\n".join(text for _, _, text in migrations())
    level = re.search(r"select 'enqueue', 'function'.*?array\[(.*?)\]", schema, flags=re.DOTALL)
    assert level is not None
    public = set(re.findall(r"'(\w+)'", level[1])) & set(re.findall(r"create function dispatcher\.(\w+)\(", schema))
    assert set(re.findall(r"`dispatcher\.(\w+)\(", section("Enqueueing"))) == public
    codes = set(re.findall(r"DJ\d{3}", section("Enqueueing")))
    assert codes == set(re.findall(r"DJ\d{3}", schema)) - {"DJ008", "DJ009"}  # ctx.complete's, shown as exceptions


def test_reasons_of_explain_are_those_of_the_schema() -> None:
    schema = "\n".join(text for _, _, text in migrations())
    kinds = set(re.findall(r"dispatcher\.reason\('(\w+)'", schema))
    text = section("Why a job does not run")
    listed = {kind for cells in rows(text) for kind in re.findall(r"`(\w+)`", cells[0])}
    assert listed | {"running", "batch", "ended"} == kinds
    assert all(f"`{kind}`" in text for kind in kinds)


def test_options_are_those_of_the_clients() -> None:
    listed = {cells[0].strip("`") for cells in rows(section("Enqueueing")) if len(cells) == 4}
    assert listed == set(Options.__annotations__)


def test_names_of_the_context_and_of_the_client_exist() -> None:
    for name in re.findall(r"ctx\.([a-z_]+)", README):
        assert hasattr(Context, name) or name in ("attempt", "deadline"), name
    methods = section("Enqueueing").partition("**Python.**")[2]
    for name in re.findall(r"`([a-z_]+)`", methods.partition("What enqueues")[0]):
        assert hasattr(dispatcher.Client, name), name
        assert hasattr(dispatcher.AsyncClient, name), name


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
def test_python_examples_compile_and_import_what_exists(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module == "dispatcher":
            for alias in node.names:
                assert hasattr(dispatcher, alias.name), alias.name


def test_executors_of_the_examples_can_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)):
        if "@executor" not in block:
            continue
        module = ModuleType(f"example_{number}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(block, module.__name__, "exec"), vars(module))  # it is our own text
        registry = dispatcher.Registry()
        registry.add_module(module)
        (spec,) = registry
        # Published as one array of all types' timeouts, which must be numbers of one kind.
        assert isinstance(spec.timeout_s, float)
