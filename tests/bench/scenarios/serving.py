"""The HTTP API: one process of it beside the server, with nobody who runs the jobs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.bench import jobs
from tests.bench.scenarios.measures import Measures, Size
from tests.bench.stage import ROOT, BenchFailed, Stage, stage
from tests.ports import free_port

CONNECTIONS = 32
READ = 1_000  # jobs, in turn
MANY = 10_000  # in one call


def http(dsn: str, size: Size) -> Measures:
    """Creates and reads of one job each, as many as are answered; reads again at half that rate, for their latency;
    and many jobs in one call."""
    with stage(dsn) as own, serve(own) as (port, token):
        body = json.dumps({"type": jobs.NOOP, "payload": {"n": 1, "name": "customer 1"}})
        create = (
            f"POST /jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        )
        created = load(port, [create], size.requests_s)
        count = int(str(own.ask("select count(*) from dispatcher.job")))
        if count < created["answers"]:
            raise BenchFailed(f"{created['answers']} creates were answered, but there are {count} jobs")
        many = json.dumps([{"type": jobs.NOOP, "payload": {"n": n}} for n in range(MANY)]).encode()
        began = time.monotonic()
        _post(port, token, "/jobs:batch", many)
        took = time.monotonic() - began
        reads = [
            f"GET /jobs/{1 + n % count} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
            for n in range(READ)
        ]
        read = load(port, reads, size.requests_s)
        per_second = read["answers"] / read["seconds"]
        half = load(port, reads, size.requests_s, rate=per_second / 2)
    return {
        "creates_per_second": (created["answers"] / created["seconds"], "1/s"),
        "in_one_call_10000": (1000 * took, "ms"),
        "reads_per_second": (per_second, "1/s"),
        "reads_half_load_p50": (1000 * half["p50_s"], "ms"),
        "reads_half_load_p99": (1000 * half["p99_s"], "ms"),
    }


def _post(port: int, token: str, path: str, body: bytes) -> None:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        if answer.status != 202:
            raise BenchFailed(f"{path} was answered with {answer.status}")


def load(port: int, requests: Sequence[str], seconds: float, rate: float = 0.0) -> dict[str, float]:
    """What came of sending these; all must have gone well."""
    arguments = [sys.executable, "-m", "tests.bench.load", str(port), str(CONNECTIONS), str(seconds), str(rate)]
    text = "".join(json.dumps(request) + "\n" for request in requests)
    done = subprocess.run(arguments, input=text, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchFailed(f"the load failed: {done.stderr.splitlines()[-1:]}")
    answer = json.loads(done.stdout)
    if bad := {status: n for status, n in answer.pop("statuses").items() if not status.startswith("2")}:
        raise BenchFailed(f"not all requests were answered well: {bad}")
    result: dict[str, float] = answer
    return result


@contextmanager
def serve(own: Stage) -> Iterator[tuple[int, str]]:
    """A process of `dispatcher api`: its port, and a token."""
    port = free_port()
    _, token = own.client.create_token("bench", role="admin")
    server = subprocess.Popen(
        [sys.executable, "-m", "dispatcher", "api", "--api-port", str(port)],
        env=own.environment(),
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    try:
        own.until("the HTTP API", lambda: _answers(port))
        yield port, token
    finally:
        server.terminate()
        server.wait(30)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        time.sleep(0.01)
        return False
