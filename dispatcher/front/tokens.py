"""Tokens of the HTTP API."""

from __future__ import annotations

from dispatcher.front.base import AsyncFront, Front
from dispatcher.options import Duration, seconds
from dispatcher.queries import tokens
from dispatcher.queries.tokens import TokenInfo
from dispatcher.secret import hash_token, new_token


class TokensFront(Front):
    """The blocking part."""

    def create_token(
        self, name: str, *, tenant: str | None = None, role: str = "write", expires: Duration | None = None
    ) -> tuple[int, str]:
        """Makes a token of the HTTP API: its id, and the token itself, which is stored nowhere and never shown again.

        `tenant`: it sees this one only, otherwise all. `role`: read; write, which may enqueue, cancel and retry;
        or admin.
        `expires`: in so long, by default never. Raises InvalidOption.
        """
        token = new_token()
        return self._do(tokens.create_token(name, tenant, role, hash_token(token), _lifetime(expires))), token

    def tokens(self) -> list[TokenInfo]:
        """All tokens, by id, without what makes them valid."""
        return self._do(tokens.list_tokens())

    def revoke_token(self, id: int) -> bool:
        """Makes a token void, within a second. False if it was void already. Raises TokenNotFound."""
        return self._do(tokens.revoke_token(id))


class AsyncTokensFront(AsyncFront):
    """The async part."""

    async def create_token(
        self, name: str, *, tenant: str | None = None, role: str = "write", expires: Duration | None = None
    ) -> tuple[int, str]:
        """As Client.create_token."""
        token = new_token()
        return await self._do(tokens.create_token(name, tenant, role, hash_token(token), _lifetime(expires))), token

    async def tokens(self) -> list[TokenInfo]:
        """As Client.tokens."""
        return await self._do(tokens.list_tokens())

    async def revoke_token(self, id: int) -> bool:
        """As Client.revoke_token."""
        return await self._do(tokens.revoke_token(id))


def _lifetime(expires: Duration | None) -> float | None:
    return None if expires is None else seconds("expires", expires)
