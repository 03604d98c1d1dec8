"""Server-sent events of one job, line by line, over as many connections as it takes. No I/O."""

from __future__ import annotations

import json
from typing import Any

from dispatcher.errors import ApiUnavailable
from dispatcher.http.exchange import Request
from dispatcher.job import FINAL
from dispatcher.queries.jobs import checked_id

SILENT_S = 45.0  # three of the server's signs of life
RECONNECT_S = 1.0  # until the server says otherwise
LONGEST_RECONNECT_S = 60.0

Event = tuple[str, dict[str, Any]]


class EventReader:
    """What has been read, and so what to ask for next."""

    def __init__(self, id: int) -> None:
        self._path = f"/jobs/{checked_id(id)}/events"
        self._last_id: str | None = None
        self._fields: dict[str, list[str]] = {}
        self.pause_s = RECONNECT_S
        """Before another connection."""
        self.over = False
        """True once the job has ended: nothing more comes."""

    def request(self) -> Request:
        """Asks for what is not known yet."""
        self._fields = {}  # of an event that was cut off: it comes again
        seen = {} if self._last_id is None else {"Last-Event-ID": self._last_id}
        headers = {"Accept": "text/event-stream", **seen}
        return Request.get(self._path, headers=headers, wait_s=SILENT_S)

    def take(self, line: str) -> Event | None:
        """The event that this line completes."""
        if line:
            self._read(line)
            return None
        given, self._fields = self._fields, {}
        if "data" not in given:
            return None
        try:
            data = json.loads("\n".join(given["data"]))
            self.over = data["state"] in FINAL
        except (ValueError, LookupError, TypeError) as exc:
            raise ApiUnavailable("an event of the HTTP API cannot be read: is it of another version?") from exc
        if "id" in given:
            self._last_id = given["id"][-1]
        return given.get("event", ["message"])[-1], data

    def _read(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "retry" and value.isdecimal():
            self.pause_s = min(LONGEST_RECONNECT_S, int(value[:9]) / 1000)
        elif name:  # without one it is a comment: a sign of life
            self._fields.setdefault(name, []).append(value)
