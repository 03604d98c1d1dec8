"""Which pools a replica has: one for each that its executors have chosen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from uuid import UUID

from dispatcher.errors import SettingsError
from dispatcher.executor import Registry
from dispatcher.inflight import Execution, InFlight
from dispatcher.pool import Pool
from dispatcher.pools.attempt import Attempts
from dispatcher.settings import Settings

REMOTE = frozenset({"dask"})  # pools whose jobs may run on when this process has died


def remote_types(registry: Registry) -> list[str]:
    """The types whose jobs may run on when this process has died."""
    return [spec.type for spec in registry if spec.pool in REMOTE]


def check_pools(settings: Settings, registry: Registry) -> None:
    """Raises SettingsError where a pool that is asked for cannot be had."""
    if types := ", ".join(spec.type for spec in registry if spec.pool == "dask"):
        if not settings.dask_scheduler:
            raise SettingsError(f"types in the pool dask ({types}) need the setting dask_scheduler: tcp://host:8786")
        if find_spec("distributed") is None:
            raise SettingsError(f"types in the pool dask ({types}) need a package: install pg-dispatcher[dask]")


def make_pools(
    settings: Settings,
    registry: Registry,
    *,
    inflight: InFlight,
    attempts: Attempts,
    installation: UUID,
    owner: int,
    trusted_from: Callable[[], float | None],
    ended: Callable[[Execution], None],
) -> Iterator[Pool]:
    """A pool for each name that an executor has chosen. An engine is imported only where it is used."""
    names = {spec.pool for spec in registry} or {"thread"}
    if "thread" in names:
        from dispatcher.pools.thread import ThreadPool  # noqa: PLC0415

        yield ThreadPool(threads=settings.threads, inflight=inflight, attempts=attempts, ended=ended)
    if "async" in names:
        from dispatcher.pools.coroutine import AsyncPool  # noqa: PLC0415

        yield AsyncPool(size=settings.async_jobs, inflight=inflight, attempts=attempts, ended=ended)
    if "process" in names:
        from dispatcher.pools.messages import Setup  # noqa: PLC0415
        from dispatcher.pools.process import ProcessPool  # noqa: PLC0415

        setup = Setup(
            sources=[spec.source for spec in registry if spec.pool == "process"],
            dsn=settings.dsn.get_secret_value(),
            installation=installation,
            owner=owner,
            result_store=settings.result_store,
            max_result_bytes=settings.max_result_bytes,
            log_level=logging.getLogger().level,
        )
        yield ProcessPool(size=settings.processes, setup=setup, inflight=inflight, attempts=attempts, ended=ended)
    if "dask" in names:
        from dispatcher.pools.dask import DaskPool  # noqa: PLC0415

        yield DaskPool(
            address=settings.dask_scheduler,
            size=settings.dask_jobs,
            orphan_after_s=settings.orphan_after.total_seconds(),
            trusted_from=trusted_from,
            installation=installation,
            owner=owner,
            inflight=inflight,
            attempts=attempts,
            ended=ended,
        )
