"""What the areas of a client need of it: somebody who runs operations."""

from __future__ import annotations

from typing import Any, TypeVar

import psycopg

from dispatcher.operations import Operations
from dispatcher.queries.operation import Operation

T = TypeVar("T")


class Front:
    """A part of the blocking client."""

    _operations: Operations

    def _do(self, operation: Operation[T], conn: psycopg.Connection[Any] | None = None, *, atomic: bool = False) -> T:
        """Runs an operation on `conn`, else on the client's own connection; `atomic`: all in one transaction."""
        raise NotImplementedError


class AsyncFront:
    """A part of the async client."""

    _operations: Operations

    async def _do(
        self, operation: Operation[T], conn: psycopg.AsyncConnection[Any] | None = None, *, atomic: bool = False
    ) -> T:
        """As Front._do."""
        raise NotImplementedError
