"""What both clients have: whom they talk to, and how a request of ours becomes one of httpx. No I/O."""

from __future__ import annotations

from typing import Any

import httpx

from dispatcher.errors import ApiUnavailable, SettingsError
from dispatcher.http.address import Address
from dispatcher.http.control import ControlCalls
from dispatcher.http.delivery import Delivery
from dispatcher.http.exchange import Answer, Request
from dispatcher.http.jobs import JobCalls
from dispatcher.version import __version__


class Base:
    """A client without its connections."""

    def __init__(
        self, url: str | None = None, token: str | None = None, *, timeout: float = 10.0, retries: int = 5
    ) -> None:
        self._address = Address.find(url, token)
        if not timeout > 0:
            raise SettingsError("timeout must be more than zero, in seconds")
        if retries < 0:
            raise SettingsError("retries must be a whole number from 0")
        self._timeout = timeout
        self._retries = retries
        self._jobs = JobCalls()
        self._control = ControlCalls()

    def __repr__(self) -> str:
        return f"{type(self).__module__}.{type(self).__name__}({self._address.url!r})"

    def _options(self) -> dict[str, Any]:
        """Of an httpx client."""
        headers = {"Authorization": f"Bearer {self._address.token}", "User-Agent": f"pg-dispatcher/{__version__}"}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)  # as many as wait at once
        return {"headers": headers, "timeout": self._timeout, "limits": limits}

    def _delivery(self, request: Request) -> Delivery:
        return Delivery(request, self._address.url)

    def _built(self, session: httpx.Client | httpx.AsyncClient, request: Request) -> httpx.Request:
        return session.build_request(
            request.method,
            self._address.url + request.path,
            params=request.params or None,
            content=request.body,
            headers=request.headers,
            timeout=httpx.Timeout(self._timeout, read=self._timeout + request.wait_s),
        )


def answer_of(response: httpx.Response) -> Answer:
    """An answer that has been read."""
    return Answer(response.status_code, response.headers, response.content)


def checked_stream(response: httpx.Response) -> httpx.Response:
    """A stream of events, not some page; raises ApiUnavailable."""
    if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
        raise ApiUnavailable("what answers is not the dispatcher's HTTP API")
    return response
