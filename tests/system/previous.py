"""The previous release, from its own wheel, to run beside this version.

The wheel lies in the repository, since a clone may have neither tags nor history, and a test run no network. At a
release the wheel just built takes the place of the one before it (`make previous`).
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.system.replicas import ROOT

WHEELS = ROOT / "tests" / "upgrade"


def wheel() -> Path:
    """The one wheel."""
    (found,) = WHEELS.glob("pg_dispatcher-*-py3-none-any.whl")
    return found


def unpack(folder: Path) -> Path:
    """Makes the previous version importable from the folder; returns the folder."""
    with zipfile.ZipFile(wheel()) as archive:
        archive.extractall(folder)
    return folder


def command(code: str, dsn: str, *arguments: str, expect: int = 0) -> str:
    """Runs the previous version's command; its output, both channels together."""
    return _run(code, dsn, ["-m", "dispatcher", *arguments], expect)


def script(code: str, dsn: str, text: str) -> str:
    """Runs a program that imports the previous version, in which `client` is its Client."""
    return _run(
        code, dsn, ["-c", f"import os, dispatcher\nclient = dispatcher.Client(os.environ['DISPATCHER_DSN'])\n{text}"], 0
    )


def _run(code: str, dsn: str, arguments: list[str], expect: int) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "DISPATCHER_"))}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=code,
        env=environment | {"PYTHONPATH": f"{code}:{ROOT}", "DISPATCHER_DSN": dsn},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == expect, done.stdout
    return done.stdout.strip()
