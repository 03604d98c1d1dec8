"""What goes between a worker process and who runs jobs in it, pickled over a socket that nobody else has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from dispatcher.job import CancelReason
from dispatcher.outcome import Outcome
from dispatcher.queries.claims import Claimed

Attempt = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Setup:
    """The first message to a worker process: what its jobs share."""

    sources: list[str]
    """Executors to import before the first job comes."""
    dsn: str | None
    """None: jobs have no database."""
    installation: UUID
    owner: int
    """The replica whose jobs they are."""
    result_store: str
    max_result_bytes: int
    log_level: int


@dataclass(frozen=True, slots=True)
class Order:
    """Run this."""

    claimed: Claimed
    source: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class CancelOrder:
    """The attempt is asked to stop."""

    key: Attempt
    reason: CancelReason


@dataclass(frozen=True, slots=True)
class Started:
    """The order was read: from here on, what happens to the process happens to the job."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The latest one; those between may be left out."""

    percent: float
    message: str | None


@dataclass(frozen=True, slots=True)
class Logged:
    """What a record for the daemon's log consists of; its message is a text already."""

    record: Mapping[str, str | int | float | None]


@dataclass(frozen=True, slots=True)
class Stack:
    """What the job was doing when its time was over."""

    text: str


@dataclass(frozen=True, slots=True)
class HookFailed:
    """A hook of this type raised."""

    type: str


@dataclass(frozen=True, slots=True)
class Done:
    """The attempt has ended. The last message of it."""

    outcome: Outcome
    worn: bool
    """The process is to be replaced."""


ToWorker = Setup | Order | CancelOrder
FromWorker = Started | Progress | Logged | Stack | HookFailed | Done
