"""The HTTP API as a process, as an administrator or systemd would start it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import httpx

from dispatcher import Client
from tests.system.replicas import PATIENCE_S, ROOT, until

# The descriptor 3, and LISTEN_PID as systemd sets it: the process that is to become the server.
_PASS_ON = 'exec env LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=api "$@" 3<&0 0</dev/null'


class ApiProcess:
    """A process of `dispatcher api`; with a listening socket it serves on that one. Close it."""

    def __init__(
        self,
        dsn: str,
        folder: Path,
        *,
        listening: socket.socket | None = None,
        prefix: tuple[str, ...] = (),
        **settings: str,
    ) -> None:
        self.dsn = dsn
        self.log_file = folder / f"api-{len(list(folder.glob('api-*')))}.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "DISPATCHER_"))}
        settings = {"api_port": "0", "log_format": "json"} | settings
        environment |= {f"DISPATCHER_{name.upper()}": value for name, value in settings.items()}
        environment |= {"DISPATCHER_DSN": dsn}
        command = [*prefix, sys.executable, "-m", "dispatcher", "api"]
        if listening is not None:
            command = ["sh", "-c", _PASS_ON, "sh", *command]
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL if listening is None else listening.fileno(),
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        print(f"--- api, process {self.process.pid}")  # pytest shows it beside a failure
        print(self.output[-6000:])

    @property
    def output(self) -> str:
        """All that it has written."""
        return self.log_file.read_text()

    def said(self, event: str) -> list[dict[str, Any]]:
        """What it has logged of one event."""
        entries = []
        for line in self.output.splitlines():
            with contextlib.suppress(ValueError):
                entries.append(json.loads(line))
        return [entry for entry in entries if event in entry["event"]]

    def until_serves(self) -> Self:
        """Waits until it has begun."""
        until(lambda: self.said("serves") or self.process.poll() is not None, "it serves")
        assert self.process.poll() is None, self.output
        return self

    @property
    def address(self) -> str:
        """Where it serves, as it says itself."""
        return str(self.said("serves")[0]["address"])

    @property
    def url(self) -> str:
        """What requests go to."""
        return f"http://{self.address}"

    def token(self) -> str:
        """A new token that may write, for all tenants."""
        with Client(self.dsn) as client:
            return client.create_token("test")[1]

    def stop(self, *, by: signal.Signals = signal.SIGTERM) -> None:
        """Tells it to end."""
        self.process.send_signal(by)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Its exit status, once it is gone."""
        return self.process.wait(timeout_s)


def caller(url: str, token: str, **options: Any) -> httpx.Client:
    """Requests with this token."""
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30, **options)
