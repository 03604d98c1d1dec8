"""The wheel alone, installed elsewhere: nothing that it needs may lie only in the checkout."""

import os
import signal
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.system.installation import build_wheel, copy_dependencies

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command `dispatcher` of a fresh environment that knows the wheel and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = build_wheel(folder)
    home = folder / "home"
    venv.create(home, with_pip=True)
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    copy_dependencies(home / "lib" / name / "site-packages")
    pip = [str(home / "bin/pip"), "install", "--quiet", "--no-index", "--disable-pip-version-check", str(wheel)]
    subprocess.run(pip, check=True, timeout=120)
    return home / "bin/dispatcher"


def test_wheel_runs_without_the_checkout(command: Path, empty_dsn: str, tmp_path: Path) -> None:
    environment = {
        "PATH": os.defpath,
        "DISPATCHER_DSN": empty_dsn,
        "DISPATCHER_METRICS_PORT": "0",
        "DISPATCHER_COMMANDS": '{"greet": ["/bin/echo", "hello"]}',
    }

    def dispatcher(*arguments: str) -> str:
        """What the command prints."""
        return subprocess.run(
            [command, *arguments],
            env=environment,
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout

    dispatcher("migrate")
    dispatcher("migrate", "--check")
    with subprocess.Popen(
        [command, "run"], env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as replica:
        assert replica.stderr is not None
        for line in replica.stderr:  # ends when the process does
            if "leads" in line:
                break
        assert "hello" in dispatcher("enqueue", "command", '{"program": "greet"}', "--wait")
        replica.send_signal(signal.SIGTERM)
        assert "stopped" in replica.communicate(timeout=30)[1]
        assert replica.returncode == 0
