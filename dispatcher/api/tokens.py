"""Whose a token is. It is looked up once a second at most, so that requests do not ask the database twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from dispatcher.api.database import Database
from dispatcher.errors import DispatcherError
from dispatcher.queries.tokens import FoundToken, find_token, note_token_use
from dispatcher.secret import hash_token, is_token

KEPT_S = 1.0  # a revoked token is refused after so long at the latest
KEPT = 10_000
NOTE_EVERY_S = 60.0


class Role(IntEnum):
    """What a token may do; each may also do what those before it may."""

    READ = 1
    WRITE = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class Principal:
    """Whom a request comes from."""

    token_id: int
    name: str
    tenant: str | None
    """None: all tenants."""
    role: Role


class BadToken(Exception):
    """A token that does not count; the text says why."""


class Tokens:
    """Looks tokens up, and keeps what it found for a second."""

    def __init__(self, db: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._db = db
        self._clock = clock
        self._found: dict[str, tuple[float, Principal | BadToken]] = {}
        self._asking: dict[str, asyncio.Task[Principal | BadToken]] = {}
        self._used: dict[int, float] = {}
        self._noting: set[asyncio.Task[None]] = set()

    async def principal(self, token: str) -> Principal:
        """Whose it is; raises BadToken, DatabaseUnavailable."""
        until, found = self._found.get(token, (0.0, None))
        if found is None or until <= self._clock():
            found = await self._look_up_once(token)
        if isinstance(found, BadToken):
            raise found
        return found

    async def _look_up_once(self, token: str) -> Principal | BadToken:
        """As many as ask at once cost one look."""
        if (asking := self._asking.get(token)) is None:
            asking = self._asking[token] = asyncio.create_task(self._look_up(token))
            asking.add_done_callback(lambda _: self._asking.pop(token, None))
        return await asyncio.shield(asking)

    async def _look_up(self, token: str) -> Principal | BadToken:
        if not is_token(token):
            return BadToken("this is no token of the dispatcher's")  # not kept: it costs nothing
        known = await self._db.run(find_token(hash_token(token)))
        found = _judge(known)
        if len(self._found) >= KEPT:
            self._found.clear()
        kept_s = KEPT_S if known is None or known.expires_in_s is None else min(KEPT_S, max(0.0, known.expires_in_s))
        self._found[token] = (self._clock() + kept_s, found)
        if isinstance(found, Principal):
            self._note_use(found.token_id)
        return found

    def _note_use(self, id: int) -> None:
        now = self._clock()
        if now - self._used.get(id, -NOTE_EVERY_S) < NOTE_EVERY_S:
            return
        self._used[id] = now
        task = asyncio.create_task(self._note(id))
        self._noting.add(task)
        task.add_done_callback(self._noting.discard)

    async def _note(self, id: int) -> None:
        try:
            await self._db.run(note_token_use([id]))
        except DispatcherError:
            self._used.pop(id, None)  # the next request notes it


def _judge(known: FoundToken | None) -> Principal | BadToken:
    if known is None:
        return BadToken("there is no such token")
    if known.state != "valid":
        return BadToken(f"the token has {known.state}" if known.state == "expired" else "the token was revoked")
    return Principal(known.id, known.name, known.tenant, Role[known.role.upper()])
