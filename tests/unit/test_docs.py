"""What the documents name exists: links and their headings, files, tests, commands, variables, metrics, SQL.

That the README's tables are complete, test_readme.py sees to.
"""

import re
import shlex
from collections.abc import Iterator
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
from dispatcher.sql import migrations

import dispatcher
from dispatcher.cli import main
from dispatcher.settings import ENV_PREFIX, Settings
from dispatcher.testing import plugin
from tests.unit.test_monitoring import exposed

ROOT = Path(__file__).parents[2]
TOP = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
FOLDERS = [".ci", "dispatcher", "docs", "executors", "sql", "systemd", "tests"]
DOCUMENTS = [
    *TOP,
    *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.md"))),
    *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "tests").rglob("README.md"))),
]
FILES = {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()}
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")
VARIABLE = re.compile(r"\bDISPATCHER_(?!SECRET_)[A-Z_]+[A-Z]\b")  # the names of secrets are the user's own
ENTRY_POINTS = {entry.group for entry in distribution("pg-dispatcher").entry_points}
OF_THE_READER = {"shop.py", "dispatcher.env", "dispatcher.toml"}  # files that the examples have the reader write


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def spans(document: str) -> list[str]:
    """What stands in backticks within its prose."""
    return SPAN.findall(FENCE.sub("", read(document)))


def variables(*folders: str) -> set[str]:
    """Those of the environment that the code names."""
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return {name for path in files for name in VARIABLE.findall(path.read_text(encoding="utf-8"))}


def anchors(text: str) -> set[str]:
    """The fragments that lead to its headings, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_to_headings(document: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", FENCE.sub("", read(document))):
        if target.startswith("https://"):
            continue
        name, _, fragment = target.partition("#")
        path = (ROOT / document).parent / name if name else ROOT / document
        assert path.exists(), target
        assert not fragment or fragment in anchors(path.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_exist(document: str) -> None:
    for span in set(spans(document)) - OF_THE_READER:
        if re.fullmatch(rf"(?:{'|'.join(map(re.escape, FOLDERS))})/[\w*./@-]+", span):
            assert list(ROOT.glob(span.rstrip("/"))), span
        elif re.fullmatch(r"[\w@-]+\.(?:py|sql|md|yml|toml\.example|env\.example|service|socket|target)", span):
            assert span in FILES | set(TOP), span


def test_hazards_name_tests_that_exist() -> None:
    hazards = read("docs/architecture.md").partition("\n## Hazards and their tests\n")[2].partition("\n## ")[0]
    cells = [line.strip("| ").split(" | ")[1] for line in hazards.splitlines() if line.startswith("| ")][2:]
    named = [re.sub(r"\[(\w+)\]\([^)]*\)", r"\1", name) for cell in cells for name in cell.split(", ")]
    assert len(named) > len(cells) > 20
    assert [name for name in named if not re.fullmatch(r"test_\w+", name) or f"{name}.py" not in FILES] == []


def calls(document: str) -> Iterator[list[str]]:
    """The words after `dispatcher` of each command that its examples or its prose show."""
    text = read(document).replace("\\\n", " ")
    lines = re.findall(r"^(?: {4}|\$ )(.+)$", text, flags=re.MULTILINE)
    fenced = "\n".join(re.findall(r"^```sh\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)).splitlines()
    for code in (*lines, *fenced, *spans(document)):
        for call in re.findall(r"(?:^|/bin/|\$\()dispatcher ([a-z][^|;)]*)", code.strip()):
            try:
                yield shlex.split(call, comments=True)
            except ValueError:  # a payload that goes on in the next line
                yield call.partition(" '")[0].split()


def resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that these words call, and what is left of them."""
    command: click.Command = main
    while isinstance(command, click.Group) and words:
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, words
        command, words = found, words[1:]
    return command, words


def assert_flags_exist(command: click.Command, text: str) -> None:
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) - {"--help"}
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert flags <= known, (command.name, flags - known)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_their_flags_exist(document: str) -> None:
    for words in calls(document):
        command, rest = resolve(words)
        if not isinstance(command, click.Group):
            assert_flags_exist(command, " ".join(rest))


def test_flags_beside_a_command_of_the_table_are_its_own() -> None:
    rows = re.findall(r"^\| `dispatcher ([a-z ]+)` \| (.+) \|$", read("README.md"), flags=re.MULTILINE)
    assert rows
    for name, text in rows:
        command, rest = resolve(name.split())
        assert rest == []
        assert_flags_exist(command, " ".join(SPAN.findall(text)))


def test_variables_are_settings_or_read_by_the_code() -> None:
    settings = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields}
    known = settings | variables("dispatcher", "executors", "tests")
    for document in DOCUMENTS:
        assert set(VARIABLE.findall(read(document))) <= known, document


def test_variables_of_the_executors_are_documented() -> None:
    documented = {name for document in DOCUMENTS for name in VARIABLE.findall(read(document))}
    assert variables("executors") <= documented


@pytest.mark.parametrize("document", DOCUMENTS)
def test_metrics_that_are_named_exist(document: str) -> None:
    families = {re.sub(r"_(?:bucket|sum|count)$", "", name) for name in exposed()}
    named = set(re.findall(r"`(dispatcher_[a-z_]+)(?:\{[a-z,]+\})?`", read(document)))
    assert named <= families | {"dispatcher_events", "dispatcher_fleet"} | set(vars(plugin))  # channels; fixtures


@pytest.mark.parametrize("document", DOCUMENTS)
def test_names_of_sql_and_of_the_package_exist(document: str) -> None:
    schema = "\n".join(text for _, _, text in migrations())
    created = set(re.findall(r"create (?:or replace )?(?:function|view|table) dispatcher\.(\w+)", schema))
    for name in re.findall(r"(?:`|\bselect |\bfrom |\bupdate )dispatcher\.([a-z_]+)\b(?=[`( ;])", read(document)):
        known = name in created or hasattr(dispatcher, name) or find_spec(f"dispatcher.{name}") is not None
        assert known or f"dispatcher.{name}" in ENTRY_POINTS | FILES | OF_THE_READER, name


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for document in DOCUMENTS:
        for span in spans(document):
            if called := re.match(r"make (?:[A-Z]\S* )*([a-z-]+)", span):
                assert called[1] in targets, (document, span)
