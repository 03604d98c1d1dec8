"""Each call of the README's page on the HTTP API does what it says there."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from dispatcher.db import Connection
from dispatcher.executor import Executor
from tests.db.running import nothing, publish
from tests.db.serving import Served

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
FINISH = "update dispatcher.job set state = 'succeeded', result = '1', finished_at = now() where id = 1"


def test_the_calls_of_the_readme_work_one_after_another(api: Served, conn: Connection, tmp_path: Path) -> None:
    publish(conn, Executor("greet", nothing, "tests"))
    [block] = re.findall(r"```sh\n(api\(\).*?)```", README, flags=re.DOTALL)
    script = block.replace("wait=30s", "wait=1ms").replace("curl -sS", "curl -sS --fail-with-body")
    script = script.replace("api $url/leader", "")  # nobody leads here, nor runs jobs
    before, it, after = script.partition("api $url/jobs/1/result")
    start = before[: before.index("# Jobs")]
    for part in (before, start + it + after):
        environment = {**os.environ, "DISPATCHER_API_URL": api.url, "DISPATCHER_API_TOKEN": api.token(role="admin")}
        done = subprocess.run(
            ["bash", "-e", "-c", part], env=environment, capture_output=True, text=True, check=False, timeout=50
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        conn.execute(FINISH)
    assert len(re.findall(r"^api ", block, flags=re.MULTILINE)) > 25
