"""How executors are declared and found."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from dispatcher.context import Context
from dispatcher.errors import ExecutorError
from dispatcher.executor import ENTRY_POINT_GROUP, Executor, Registry, executor, locate
from dispatcher.job import Job

MODULE = """
from dispatcher import executor

@executor({type!r})
def run(job, ctx):
    return "from {name}"
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path; what is imported from it is forgotten."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def entry_points(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """The installed entry points, as a test wants them."""
    found: list[EntryPoint] = []
    module = sys.modules["dispatcher.executor"]  # its name in the package is the decorator's
    monkeypatch.setattr(module, "entry_points", lambda group: [e for e in found if e.group == group])
    return found


def write(folder: Path, name: str, type: str) -> None:
    (folder / f"{name}.py").write_text(MODULE.format(type=type, name=name))


def test_modules_and_entry_points_are_found(modules: Path, entry_points: list[EntryPoint]) -> None:
    write(modules, "own_jobs", "own")
    write(modules, "installed_jobs", "installed")
    entry_points += [
        EntryPoint("any", "installed_jobs", ENTRY_POINT_GROUP),
        EntryPoint("other", "no_such_module", "another.group"),
    ]
    registry = Registry.load(["own_jobs"])
    assert registry.types == ["installed", "own"]
    spec = registry.get("own")
    assert spec is not None
    assert spec.run(None, None) == "from own_jobs"  # type: ignore[arg-type]
    assert registry.get("else") is None


def test_two_for_one_type_names_both(modules: Path) -> None:
    write(modules, "first_jobs", "twice")
    write(modules, "second_jobs", "twice")
    with pytest.raises(ExecutorError, match=r"'twice': first_jobs\.run and second_jobs\.run"):
        Registry.load(["first_jobs", "second_jobs"])


def test_two_in_one_module_for_one_type_names_both(modules: Path) -> None:
    (modules / "both_jobs.py").write_text(
        MODULE.format(type="twice", name="a") + MODULE.format(type="twice", name="b").replace("def run", "def go")
    )
    with pytest.raises(ExecutorError, match=r"both_jobs\.run and both_jobs\.go"):
        Registry.load(["both_jobs"])


def test_same_module_twice_is_no_error(modules: Path, entry_points: list[EntryPoint]) -> None:
    write(modules, "own_jobs", "own")
    entry_points.append(EntryPoint("own", "own_jobs", ENTRY_POINT_GROUP))
    assert Registry.load(["own_jobs", "own_jobs"]).types == ["own"]


def test_what_a_module_merely_imports_is_not_its_own(modules: Path) -> None:
    write(modules, "own_jobs", "own")
    (modules / "importing_jobs.py").write_text("from own_jobs import run\nimport own_jobs\n")
    assert Registry.load(["importing_jobs"]).types == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "No module named 'bad_jobs'"),
        ("import no_such_thing", "No module named 'no_such_thing'"),
        ("def broken(:", "invalid syntax"),
        ("1 / 0", "division by zero"),
        ("raise SystemExit(3)", "3"),
        ("from dispatcher import executor\n@executor('')\ndef f(job, ctx): ...", "letters, digits"),
    ],
    ids=["missing", "import", "syntax", "error", "exit", "declaration"],
)
def test_bad_module_is_one_line(modules: Path, source: str | None, message: str) -> None:
    if source is not None:
        (modules / "bad_jobs.py").write_text(source)
    with pytest.raises(ExecutorError) as caught:
        Registry.load(["bad_jobs"])
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["", ".relative", "with space", "."])
def test_bad_module_name_is_one_line(name: str) -> None:
    with pytest.raises(ExecutorError) as caught:
        Registry.load([name])
    assert len(str(caught.value).splitlines()) == 1


def test_class_does_as_well_and_is_made_once() -> None:
    made = []

    @executor("class", max_attempts=2)
    class Worker:
        """Does work.

        More about it.
        """

        def __init__(self) -> None:
            made.append(self)

        def execute(self, job: Job, ctx: Context) -> Any:
            return (self, job)

    spec = Worker.__dispatcher_executor__  # type: ignore[attr-defined]
    assert isinstance(spec, Executor)
    assert spec.run(1, None) == (made[0], 1)  # type: ignore[arg-type]
    assert len(made) == 1
    assert (spec.description, spec.retry.max_attempts) == ("Does work.", 2)


def test_declared_function_stays_a_function() -> None:
    @executor("plain", timeout=timedelta(minutes=2), limit=7)
    def plain(job: Job, ctx: Context) -> int:
        return 5

    assert plain(None, None) == 5  # type: ignore[arg-type]
    spec = plain.__dispatcher_executor__  # type: ignore[attr-defined]
    assert (spec.timeout_s, spec.limit, spec.description) == (120.0, 7, "")
    assert spec.source.endswith("plain")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": -1}, "limit"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": 32768}, "max_attempts"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": timedelta(seconds=-1)}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
        ({"pool": "fibre"}, "known pools: thread"),
        ({"memory_limit": "64MiB"}, "memory_limit goes with pool process or dask"),
        ({"pool": "process", "memory_limit": "much"}, "memory_limit must be a size"),
        ({"pool": "process", "memory_limit": 1000}, "1MiB at least"),
    ],
)
def test_senseless_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ExecutorError, match=message):
        executor("type", **options)


@pytest.mark.parametrize("type", ["", "with space", "ümlaut", "x" * 201, "new\nline", "a;b"])
def test_type_s_name_is_checked_as_the_table_does(type: str) -> None:
    with pytest.raises(ExecutorError):
        executor(type)


def test_schema_comes_from_the_payload_s_model() -> None:
    class Payload(BaseModel):
        n: int

    @executor("modelled", payload=Payload)
    def run(job: Job, ctx: Context) -> None: ...

    schema = run.__dispatcher_executor__.schema()  # type: ignore[attr-defined]
    assert schema["required"] == ["n"]


@pytest.mark.parametrize("pool", ["process", "dask"])
def test_an_executor_that_another_process_cannot_import_is_refused(pool: Any) -> None:
    def run(job: Job, ctx: Context) -> None: ...

    with pytest.raises(ExecutorError, match=f"pool {pool} imports the executor in another process"):
        executor("nested", pool=pool)(run)


def test_another_process_finds_an_executor_by_its_source() -> None:
    from tests import far_jobs  # noqa: PLC0415

    spec = far_jobs.echo.__dispatcher_executor__  # type: ignore[attr-defined]
    assert locate(spec.source) is spec
    with pytest.raises(ExecutorError, match="there is no executor 'PATIENCE_S'"):
        locate("tests.pooling.PATIENCE_S")
    with pytest.raises(ExecutorError, match="cannot import executors from 'nowhere'"):
        locate("nowhere.run")
