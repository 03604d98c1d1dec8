"""Turns: the order in which lanes come, by level (the priority of their first job) and within one in turn."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from itertools import chain

from dispatcher.queries.claims import Cursor, Lane


class Turns:
    """Lanes, each with its cursor. One that is put in comes behind the others of its level and before worse ones: a
    tenant that had its turn waits for those with work as urgent, not for everybody.
    """

    def __init__(self) -> None:
        self._levels: dict[int, dict[Lane, Cursor]] = {}
        self._order: list[int] = []
        self._level_of: dict[Lane, int] = {}

    def __len__(self) -> int:
        return len(self._level_of)

    def __iter__(self) -> Iterator[tuple[Lane, Cursor]]:
        return chain.from_iterable(self._levels[level].items() for level in self._order)

    def __contains__(self, lane: Lane) -> bool:
        return lane in self._level_of

    def __getitem__(self, lane: Lane) -> Cursor:
        return self._levels[self._level_of[lane]][lane]

    @property
    def level(self) -> int:
        """The best level that has a lane."""
        return next(level for level in self._order if self._levels[level])

    def best(self) -> Iterator[tuple[Lane, Cursor]]:
        """The lanes of that level in turn; none if there are none at all."""
        return iter(self._levels[self.level].items()) if self._level_of else iter(())

    def put(self, lane: Lane, cursor: Cursor, level: int) -> None:
        """Adds a lane that is not there."""
        if level not in self._levels:
            self._levels[level] = {}
            insort(self._order, level)
        self._levels[level][lane] = cursor
        self._level_of[lane] = level

    def pop(self, lane: Lane) -> int:
        """Removes a lane that is there; its level."""
        level = self._level_of.pop(lane)
        del self._levels[level][lane]
        return level
