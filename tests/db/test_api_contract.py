"""The OpenAPI document holds: schemathesis asks whatever it allows, and much that it does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dispatcher.api.routes import events, jobs
from dispatcher.db import Connection
from dispatcher.executor import Executor
from tests.db.running import QUICK, SLOW, enqueue, nothing, publish
from tests.db.serving import Served

HERE = Path(__file__).parent


@pytest.mark.timeout(240)
def test_schemathesis_finds_no_answer_that_the_document_does_not_tell(
    api: Served, conn: Connection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(events, "LONGEST_S", 0.05)
    monkeypatch.setattr(jobs, "LONGEST_WAIT_S", 0.05)
    publish(conn, QUICK, SLOW, Executor("hello", nothing, "tests"))  # the one in the examples
    enqueue(conn)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "schemathesis.cli",
            *("--config-file", str(HERE / "schemathesis.toml"), "run", f"{api.url}/openapi.json"),
            *("--header", f"Authorization: Bearer {api.token(role='admin')}"),
            *("--no-color", "--max-time", "30", "--generation-deterministic"),  # the same today and tomorrow
        ],
        cwd=tmp_path,
        env={
            "SCHEMATHESIS_HOOKS": "tests.db.schemathesis_hooks",
            "PYTHONPATH": str(HERE.parents[1]),
            "PATH": "/usr/bin:/bin",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout[-20_000:], done.stderr[-5_000:])
    assert done.returncode == 0
