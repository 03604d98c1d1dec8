"""What the wheel carries is what the tree holds."""

import tomllib
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).parents[2]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_is_listed() -> None:
    in_tree = {".".join(init.parent.relative_to(ROOT).parts) for init in (ROOT / "dispatcher").rglob("__init__.py")}
    assert set(SETUPTOOLS["packages"]) == in_tree | set(SETUPTOOLS["package-dir"])


def test_folders_are_found_under_the_names_they_are_installed_as() -> None:
    names = SETUPTOOLS["package-dir"].items()
    assert {name: resources.files(name).joinpath("x") for name, _ in names} == {
        name: ROOT / folder / "x" for name, folder in names
    }
