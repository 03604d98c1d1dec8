"""GuardedConnection: a session that is used only while its socket is still its own (own_file.py)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
from psycopg.pq import ConnStatus
from psycopg.rows import TupleRow

from dispatcher.own_file import OwnFile

RV = TypeVar("RV")


class GuardedConnection(psycopg.Connection[TupleRow]):
    """Looks before each step of libpq, which takes three microseconds."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._socket = OwnFile(self.pgconn.socket)

    def wait(self, gen: Generator[Any, Any, RV], *args: Any, **named: Any) -> RV:
        """See psycopg.Connection."""
        return super().wait(self._guarded(gen), *args, **named)

    def close(self) -> None:
        """See psycopg.Connection."""
        if not self.closed:
            self._check()
            self._socket.forget()
        super().close()

    def _guarded(self, gen: Generator[Any, Any, RV]) -> Generator[Any, Any, RV]:
        try:
            self._check()
            wanted = next(gen)
            while True:
                try:
                    ready = yield wanted
                except BaseException as exc:  # noqa: BLE001 - it is for the one within
                    wanted = gen.throw(exc)
                    continue
                self._check()
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return] # as typed by `gen`

    def _check(self) -> None:
        # libpq itself closes the socket of a session that is lost.
        if self.pgconn.status == ConnStatus.OK:
            self._socket.check()
