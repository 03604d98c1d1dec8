"""Scenarios of enqueueing: one at a time, many in a call, lines by the command line, several clients at once."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time

from tests.bench import jobs
from tests.bench.scenarios.draining import enqueue_many
from tests.bench.scenarios.measures import Measures, Size
from tests.bench.stage import ROOT, BenchFailed, Stage, stage


def enqueue(dsn: str, size: Size) -> Measures:
    """One connection: jobs one by one, each committed; and many in a call. Nobody runs them."""
    with stage(dsn) as own:
        own.client.enqueue(jobs.NOOP, {"n": 0})
        began = time.monotonic()
        for n in range(size.singles):
            own.client.enqueue(jobs.NOOP, {"n": n})
        single = size.singles / (time.monotonic() - began)
        began = time.monotonic()
        enqueue_many(own, size.jobs)
        many = size.jobs / (time.monotonic() - began)
        _expect(own, 1 + size.singles + size.jobs)
    return {"single_per_second": (single, "1/s"), "many_per_second": (many, "1/s")}


def lines(dsn: str, size: Size) -> Measures:
    """A file with a job a line, by the command line, with and without the start of the program."""
    with stage(dsn) as own, tempfile.NamedTemporaryFile("w", suffix=".ndjson") as file:
        file.writelines(json.dumps({"n": n, "name": f"customer {n}"}) + "\n" for n in range(size.lines))
        file.flush()
        none = _run(own, "/dev/null")
        whole = _run(own, file.name)
        _expect(own, size.lines)
    return {
        "lines_per_second": (size.lines / whole, "1/s"),
        "lines_per_second_once_started": (size.lines / max(1e-9, whole - none), "1/s"),
    }


def notify(dsn: str, size: Size) -> Measures:
    """Clients that enqueue one at a time, with a leader up; beside the same where nobody is notified.

    With the default poll a leader that nobody notifies does next to nothing, so the ratio holds its work for each
    notification as well; with a short one it works alike in both.
    """
    measures: Measures = {}
    for name, settings in (("default_poll", {}), ("poll_10ms", {"DISPATCHER_POLL_INTERVAL": "10ms"})):
        untold = _clients(dsn, size, settings, notified=False)
        told = _clients(dsn, size, settings, notified=True)
        measures |= {f"{name}_per_second": (told, "1/s"), f"{name}_ratio": (told / untold, "1")}
    return measures


def _run(own: Stage, path: str) -> float:
    command = [sys.executable, "-m", "dispatcher", "enqueue", jobs.NOOP, "--file", path]
    began = time.monotonic()
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=own.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchFailed(f"dispatcher enqueue failed: {done.stdout.strip()[-300:]}")
    return time.monotonic() - began


def _clients(dsn: str, size: Size, settings: dict[str, str], *, notified: bool) -> float:
    with stage(dsn) as own:
        if not notified:
            own.do("alter table dispatcher.job disable trigger signal")
        own.start_replica(**settings)
        own.lead()
        rate = _enqueue_together(own, size.clients, size.singles)
        _expect(own, size.clients * (size.singles + 1))
    return rate


def _enqueue_together(own: Stage, clients: int, each: int) -> float:
    """Jobs a second of so many processes, from when all are connected until the last one is done."""
    command = [sys.executable, "-m", "tests.bench.enqueuer", own.dsn, str(each)]
    running = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(clients)
    ]
    try:
        for client in running:
            assert client.stdout is not None
            if client.stdout.readline() != "ready\n":
                raise BenchFailed("a client that enqueues did not start")
        began = time.monotonic()
        for client in running:
            assert client.stdin is not None
            client.stdin.write("go\n")
            client.stdin.flush()
        ends = [client.communicate()[0] for client in running]
    finally:
        for client in running:
            client.kill()  # if it has not ended already
            client.wait()
    if any(client.returncode for client in running):
        raise BenchFailed("a client that enqueues failed")
    return clients * each / (max(map(float, ends)) - began)


def _expect(own: Stage, count: int) -> None:
    found = own.ask("select count(*) from dispatcher.job")
    if found != count:
        raise BenchFailed(f"{found} jobs are there instead of {count}")
