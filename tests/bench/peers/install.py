"""Puts what the peers need into a folder of its own: a Python environment and Node packages, at pinned versions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import version as own_version

from tests.bench.peers.catalog import FOLDER, HOME, NODE, OURS, PEERS, PYTHON

NODE_FILES = ("common.mjs", "graphile_worker.mjs", "pg_boss.mjs", "package.json")


def install(names: Iterable[str]) -> None:
    """Installs what is missing for these peers; raises CalledProcessError where an index cannot be reached."""
    commands = {PEERS[name].command[0] for name in names if name != OURS}
    HOME.mkdir(parents=True, exist_ok=True)
    python = str(PYTHON / "bin" / "python")
    if python in commands and not (PYTHON / "ready").exists():
        _run(sys.executable, "-m", "venv", str(PYTHON))
        _run(python, "-m", "pip", "install", "--quiet", "-r", str(FOLDER / "requirements.txt"))
        (PYTHON / "ready").touch()
    if commands - {python}:
        NODE.mkdir(exist_ok=True)
        for name in NODE_FILES:  # node looks for packages beside the file that it runs
            shutil.copy(FOLDER / name, NODE / name)
        if not (NODE / "node_modules").exists():
            _run("npm", "install", "--no-audit", "--no-fund", "--prefix", str(NODE))


def version(name: str) -> str:
    """The version of a peer that was measured."""
    if name == OURS:
        return own_version("pg-dispatcher")
    package = PEERS[name].version
    if PEERS[name].command[0] == str(PYTHON / "bin" / "python"):
        code = f"from importlib.metadata import version; print(version({package!r}))"
        return subprocess.check_output([PEERS[name].command[0], "-c", code], text=True).strip()
    return str(json.loads((NODE / "node_modules" / package / "package.json").read_text())["version"])


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=sys.stderr)
