"""A replica's place in the database: what is looked at before its row is there, and what it publishes of its types."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from uuid import UUID

from dispatcher import migrate
from dispatcher.db import Connection
from dispatcher.executor import Registry
from dispatcher.pools.engines import remote_types
from dispatcher.queries import replicas
from dispatcher.queries.lease import ensure_lease
from dispatcher.queries.replicas import Process
from dispatcher.settings import Settings
from dispatcher.sql import statement
from dispatcher.store import Store, open_store
from dispatcher.version import __version__

log = logging.getLogger("dispatcher.replica")


@dataclass(frozen=True, slots=True)
class Registered:
    """A replica by the numbers that the database has given it, and the store of that database."""

    id: int
    lease: int
    installation: UUID
    store: Store | None


def register(conn: Connection, *, settings: Settings, registry: Registry, process: Process) -> Registered:
    """Adds the replica's row; raises a DispatcherError where it must not start on this database."""
    migrate.require_current(conn)
    lease = ensure_lease(conn, settings.lease_name)
    row = conn.execute(statement("get_installation")).fetchone()
    assert row is not None
    installation = row[0]
    # Before this replica shows in the database: a store that cannot be one ends the start.
    store = open_store(settings.result_store, installation) if settings.result_store else None
    with conn.transaction():  # two that start at once do not pass each other by
        replicas.lock_registration(conn)
        _compare_types(conn, lease, registry.types)
        publish_types(conn, settings=settings, registry=registry, limits=settings.limits)
        id = replicas.register_replica(
            conn,
            lease=lease,
            process=process,
            version=__version__,
            types=registry.types,
            remote_types=remote_types(registry),
        )
    return Registered(id, lease, installation, store)


def publish_types(conn: Connection, *, settings: Settings, registry: Registry, limits: dict[str, int]) -> None:
    """Says what the types of this replica are, with these limits from the settings."""
    replicas.publish_types(
        conn,
        registry,
        limits=limits,
        timeout_s=settings.job_timeout.total_seconds(),
        max_payload_bytes=settings.max_payload_bytes,
    )


def _compare_types(conn: Connection, lease: int, types: list[str]) -> None:
    """Refuses what would break a limit; says what may never run."""
    replicas.refuse_overlap(conn, lease=lease, types=types)
    for other in replicas.list_replicas(conn, lease):
        lacking, extra = set(types) - set(other.types), set(other.types) - set(types)
        if other.present and lacking and extra:
            log.warning(
                "another replica runs other types, and each would run jobs only while it leads",
                extra={"replica": other.id, "only_here": sorted(lacking), "only_there": sorted(extra)},
            )
