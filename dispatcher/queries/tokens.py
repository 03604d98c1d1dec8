"""Statements about the tokens of the HTTP API, as operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dispatcher.errors import TokenNotFound
from dispatcher.queries.jobs import whole
from dispatcher.queries.operation import Operation, Query


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """A token as its administrators see it; the token itself is stored nowhere."""

    id: int
    name: str
    tenant: str | None
    """None: all tenants."""
    role: str
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    used_at: datetime | None
    """To the minute."""
    expired: bool


@dataclass(frozen=True, slots=True)
class FoundToken:
    """Whose a token is, and whether it still counts."""

    id: int
    name: str
    tenant: str | None
    role: str
    state: str
    """valid, expired or revoked."""
    expires_in_s: float | None


def create_token(name: str, tenant: str | None, role: str, digest: bytes, lifetime_s: float | None) -> Operation[int]:
    """The new token's id; raises InvalidOption."""
    params = {"name": name, "tenant": tenant, "role": role, "hash": digest, "lifetime_s": lifetime_s}
    rows = yield Query("create_token", params)
    return int(rows[0][0])


def find_token(digest: bytes) -> Operation[FoundToken | None]:
    """The token with this SHA-256."""
    rows = yield Query("find_token", {"hash": digest}, reads=True, often=True)
    return FoundToken(*rows[0]) if rows else None


def list_tokens() -> Operation[list[TokenInfo]]:
    """All, by id."""
    rows = yield Query("list_tokens", reads=True)
    return [TokenInfo(*row) for row in rows]


def revoke_token(id: int) -> Operation[bool]:
    """False where it was revoked before; raises TokenNotFound."""
    number = whole("id", id)
    rows = (yield Query("revoke_token", {"id": number})) if 0 < number < 2**31 else [(None,)]
    if rows[0][0] is None:
        raise TokenNotFound(f"there is no token {id}")
    return bool(rows[0][0])


def note_token_use(ids: Sequence[int]) -> Operation[None]:
    """These tokens are in use."""
    yield Query("note_token_use", {"ids": list(ids)})
