"""Calls: what a client asks of the API, written once, driven by blocking or by async code.

A generator yields a Request and is sent its Answer, whatever the status, or a Pause and is sent none.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar
from urllib.parse import quote

from dispatcher.queries.operation import Pause

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `wait_s`: so long the answer may be on its way because it was asked to be."""

    method: str
    path: str
    params: tuple[tuple[str, str], ...] = ()
    body: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    wait_s: float = 0.0
    patience_s: float | None = None
    """It is sent again for so long at most."""

    @classmethod
    def get(
        cls,
        path: str,
        params: Iterable[tuple[str, str]] = (),
        *,
        headers: Mapping[str, str] | None = None,
        wait_s: float = 0.0,
        patience_s: float | None = None,
    ) -> Request:
        """Asks."""
        return cls("GET", path, tuple(params), None, headers or {}, wait_s, patience_s)

    @classmethod
    def post(cls, path: str, body: str | None = None, *, media_type: str = "application/json") -> Request:
        """Does something, once however often it is sent: its key is new for each call, the same when sent again."""
        headers = {"Idempotency-Key": secrets.token_urlsafe(18)}
        return cls("POST", path, (), body, headers if body is None else {**headers, "Content-Type": media_type})

    @classmethod
    def delete(cls, path: str) -> Request:
        """Removes something; that it is not there any more is as good."""
        return cls("DELETE", path)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said; the names of headers in any case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def good(self) -> bool:
        """True if it was done."""
        return 200 <= self.status < 300


NOTHING = Answer(0, {})
"""What follows a pause."""

Call: TypeAlias = Generator[Request | Pause, Answer, T]


def in_path(name: str) -> str:
    """A name as a part of a path; a slash in it stays one, and no part of it means a folder above."""
    return "/".join(
        part.replace(".", "%2E") if part in (".", "..") else quote(part, safe="") for part in name.split("/")
    )
