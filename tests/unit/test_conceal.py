"""What a process was started with is overwritten in what /proc shows, and still known to itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dispatcher.conceal import split_environment

PROGRAM = """
import ctypes, os
from pathlib import Path
from dispatcher.conceal import conceal_argument, conceal_environment
conceal_argument("--dsn", "host=h password=s3cret")
conceal_environment()
getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
assert os.environ["APP_PASSWORD"] == "s3cret"
assert getenv(b"APP_PASSWORD") == b"s3cret"
print(Path("/proc/self/environ").read_text().replace("\\0", "\\n"))
print(Path("/proc/self/cmdline").read_text().replace("\\0", "\\n"))
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux shows it so")


@pytest.mark.parametrize(
    "flag", [["--dsn", "host=h password=s3cret"], ["--dsn=host=h password=s3cret"]], ids=["separate", "joined"]
)
def test_secrets_are_gone_from_proc_and_known_to_python_and_c(flag: list[str]) -> None:
    own = {"PATH": os.environ["PATH"], "APP_PASSWORD": "s3cret", "PLACE": "postgresql://u:s3cret@h/d", "PLAIN": "shown"}
    environment = own | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", PROGRAM, *flag, "s3cre", "other"]
    shown = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    lines = [line for line in shown.splitlines() if "conceal" not in line and "assert" not in line]
    assert "s3cret" not in "\n".join(lines)
    assert "PLAIN=shown" in lines
    assert "APP_PASSWORD=******" in lines
    assert lines[-3:-1] == ["s3cre", "other"]


def test_variables_that_may_be_secrets_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPATCHER_DSN", "host=h")
    monkeypatch.setenv("APP_TOKEN", "x")
    monkeypatch.setenv("PLACE", "redis://u:p@h")
    monkeypatch.setenv("DISPATCHER_THREADS", "4")
    plain, hidden = split_environment()
    assert {"DISPATCHER_DSN", "APP_TOKEN", "PLACE"} <= set(hidden)
    assert "DISPATCHER_THREADS" in plain
    assert plain | hidden == dict(os.environ)
