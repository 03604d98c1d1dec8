"""Executors: the code that runs a type of job, how it is declared, and the ways a job can end."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ByteSize, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from dispatcher.batch import BATCH_TYPE
from dispatcher.errors import ExecutorError
from dispatcher.job import Job
from dispatcher.rate import parse_rate
from dispatcher.retry import Backoff, RetryPolicy

if TYPE_CHECKING:
    from dispatcher.context import Context

ENTRY_POINT_GROUP = "dispatcher.executors"
MAX_ATTEMPTS = 32767  # failures are counted in a smallint
MIN_MEMORY = 2**20
MAX_TIMEOUT_S = 100 * 365 * 86400.0  # as the settings' durations
POOLS = ("thread", "async", "process", "dask")
FAR_POOLS = ("process", "dask")  # in which an executor is imported by another process
TYPE_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,200}")  # as in the table dispatcher.type
type_of = type  # `type` is a parameter below
_MARK = "__dispatcher_executor__"
Model = type[BaseModel]
Run = Callable[[Job, "Context"], Any]
T = TypeVar("T", bound=Callable[..., Any])  # a function, or a class with execute()


@dataclass(frozen=True, slots=True)
class Partial:
    """Return this to end a job as `partial`: done, with errors for some items, each a dict with at least `message`."""

    result: Any
    errors: list[dict[str, Any]]


class Retry(Exception):
    """Raise to fail this try and choose the pause before the next one yourself; counts as a failure."""

    after_s = 0.0  # for a child class that does not call ours

    def __init__(self, after: float | timedelta, message: str = "retry asked for by the executor") -> None:
        super().__init__(message)
        self.after_s = after.total_seconds() if isinstance(after, timedelta) else float(after)


class Snooze(Exception):
    """Raise to run again later; counts as no failure."""

    after_s = 0.0

    def __init__(self, after: float | timedelta) -> None:
        super().__init__("snooze")
        self.after_s = after.total_seconds() if isinstance(after, timedelta) else float(after)


class Fail(Exception):
    """Raise to fail the job for good: no more tries."""


class Cancel(Exception):
    """Raise to end the job as canceled."""


Hook = Callable[[Job, "Context", Any], Any]


@dataclass(frozen=True, slots=True)
class Hooks:
    """What is called once it is decided how a try ends; see `executor`."""

    on_success: Hook | None = None
    on_failure: Hook | None = None
    on_final_failure: Hook | None = None


@dataclass(frozen=True, slots=True)
class Executor:
    """One type of job and what runs it. `limit` is how many run at once over the whole fleet."""

    type: str
    run: Run
    source: str
    limit: int | None = None
    timeout_s: float | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    payload: Model | None = None
    pool: str = "thread"
    asynchronous: bool = False
    """`run` is a coroutine function."""
    memory_limit: int | None = None
    """Bytes that one job may take for its data."""
    description: str = ""
    hooks: Hooks | None = None
    tenant_limit: int | None = None
    rate: float | None = None
    """Starts a second over the whole fleet, `burst` at once."""
    burst: int | None = None

    def schema(self) -> dict[str, Any] | None:
        """The payload's JSON Schema, or None where any object will do."""
        try:
            return None if self.payload is None else self.payload.model_json_schema()
        except PydanticUserError as exc:
            raise ExecutorError(f"executor {self.type!r}: its payload model has no JSON Schema: {exc.message}") from exc


def executor(  # noqa: PLR0913 - what a type can be told, by keyword
    type: str,
    *,
    limit: int | None = None,
    tenant_limit: int | None = None,
    rate: float | str | None = None,
    burst: int | None = None,
    timeout: float | timedelta | None = None,
    max_attempts: int = 5,
    backoff: Backoff | None = None,
    retry_timeouts: bool = False,
    payload: Model | None = None,
    pool: Literal["thread", "async", "process", "dask"] | None = None,
    memory_limit: int | str | None = None,
    description: str | None = None,
    on_success: Hook | None = None,
    on_failure: Hook | None = None,
    on_final_failure: Hook | None = None,
) -> Callable[[T], T]:
    """Declares a function `f(job, ctx)`, or a class with `execute(job, ctx)`, as what runs jobs of `type`.

    `limit` is how many run at once over the fleet, `tenant_limit` how many of one tenant; `rate` how many start a
    second, or a text such as "100/min", with a `burst` at once. `timeout` is in seconds or a timedelta; none means the
    setting `job_timeout`. A timed-out job fails for good unless `retry_timeouts`. `payload`, a pydantic model, is
    checked before a try; a payload that does not fit fails at once.

    `pool` is where it runs: `thread`, the default; `async`, on one event loop for all, the default of an `async def`;
    `process`, in a process of its own, which can be killed; `dask`, on a Dask cluster. The last two import the
    executor anew, so it stands at the top level of a module; there `memory_limit`, in bytes or a text such as
    "512MiB", is what one job may take for its data.

    Hooks, also as methods of these names of a class: `on_success(job, ctx, result)`; `on_failure(job, ctx, error)` for
    each failed try, and after it `on_final_failure(job, ctx, error)` if no try is left; `error` is a JobError. They run
    in the job's thread once its end is decided and before it is recorded: at least once, and again where the process
    dies in between. What a hook raises is logged, counted and noted in `errors` (kind `hook`); it changes no outcome.
    """
    if not TYPE_NAME.fullmatch(type):
        raise ExecutorError(f"executor {type!r}: a type is named by 1 to 200 letters, digits and the signs _ . : / -")
    if type == BATCH_TYPE:
        raise ExecutorError(f"executor {type!r}: this type is that of batches; choose another name")
    for name, count in (("limit", limit), ("tenant_limit", tenant_limit), ("burst", burst)):
        if count is not None and (type_of(count) is not int or not 1 <= count < 2**31):
            raise ExecutorError(f"executor {type!r}: {name} must be a whole number of 1 or more, not {count!r}")
    try:
        starts_s = None if rate is None else parse_rate(rate)
    except ValueError as exc:
        raise ExecutorError(f"executor {type!r}: {exc}") from None
    if burst is not None and rate is None:
        raise ExecutorError(f"executor {type!r}: burst goes with a rate")
    if not 1 <= max_attempts <= MAX_ATTEMPTS:
        raise ExecutorError(f"executor {type!r}: max_attempts must be from 1 to {MAX_ATTEMPTS}")
    timeout_s = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout and float(timeout)
    if timeout_s is not None and not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise ExecutorError(f"executor {type!r}: timeout must be more than zero and at most 100 years")
    if pool is not None and pool not in POOLS:
        raise ExecutorError(f"executor {type!r}: there is no pool {pool!r}; known pools: {', '.join(POOLS)}")
    if memory_limit is not None and pool not in FAR_POOLS:
        raise ExecutorError(
            f"executor {type!r}: memory_limit goes with pool process or dask: threads share their memory"
        )
    max_bytes = None if memory_limit is None else _bytes(type, memory_limit)

    def declare(target: T) -> T:
        instance: Any = target() if inspect.isclass(target) else None
        run: Run = target if instance is None else instance.execute
        asynchronous = inspect.iscoroutinefunction(run)
        place = pool or ("async" if asynchronous else "thread")
        _check_place(type, place, target, asynchronous=asynchronous)
        spec = Executor(
            type=type,
            run=run,
            source=f"{target.__module__}.{target.__qualname__}",
            limit=limit,
            tenant_limit=tenant_limit,
            rate=starts_s,
            burst=burst,
            timeout_s=timeout_s,
            retry=RetryPolicy(max_attempts, backoff or Backoff(), retry_timeouts),
            payload=payload,
            pool=place,
            asynchronous=asynchronous,
            memory_limit=max_bytes,
            description=description if description is not None else _first_line(target.__doc__),
            hooks=_hooks(
                type, instance, on_success=on_success, on_failure=on_failure, on_final_failure=on_final_failure
            ),
        )
        setattr(target, _MARK, spec)
        return target

    return declare


def _bytes(type: str, size: int | str) -> int:
    try:
        number = TypeAdapter(ByteSize).validate_python(size)
    except ValidationError:
        number = ByteSize(0)
    if number < MIN_MEMORY:
        raise ExecutorError(f"executor {type!r}: memory_limit must be a size such as '512MiB', and 1MiB at least")
    return int(number)


def _check_place(type: str, place: str, target: Any, *, asynchronous: bool) -> None:
    if place == "thread" and asynchronous:
        raise ExecutorError(f"executor {type!r}: an async def runs in pool async (leave pool out), process or dask")
    if place == "async" and not asynchronous:
        raise ExecutorError(f"executor {type!r}: pool async is for async def; leave pool out for a plain function")
    if place in FAR_POOLS and ("<locals>" in target.__qualname__ or target.__module__ == "__main__"):
        raise ExecutorError(
            f"executor {type!r}: pool {place} imports the executor in another process: "
            "it must stand at the top level of a module that can be imported"
        )


def locate(source: str) -> Executor:
    """The executor that was declared as `source`, as another process finds it. Raises ExecutorError."""
    module, _, name = source.rpartition(".")
    spec = getattr(getattr(_import(module, "a worker process"), name, None), _MARK, None)
    if not isinstance(spec, Executor):
        raise ExecutorError(f"there is no executor {name!r} in module {module!r}")
    return spec


def _hooks(type: str, instance: Any, **given: Hook | None) -> Hooks | None:
    """The hooks that are given, else the class's methods of these names; None without any."""
    found = {name: hook if hook is not None else getattr(instance, name, None) for name, hook in given.items()}
    for name, hook in found.items():
        if hook is not None and not callable(hook):
            raise ExecutorError(f"executor {type!r}: {name} must be a function, not {hook!r}")
    return Hooks(**found) if any(hook is not None for hook in found.values()) else None


def _first_line(doc: str | None) -> str:
    return doc.strip().splitlines()[0] if doc and doc.strip() else ""


class Registry:
    """The executors of this process, by type. Two for one type are an error that names both."""

    def __init__(self, executors: Iterable[Executor] = ()) -> None:
        self._by_type: dict[str, Executor] = {}
        for spec in executors:
            self.add(spec)

    @classmethod
    def load(cls, modules: Iterable[str] = ()) -> Registry:
        """The executors of all installed entry points (group `dispatcher.executors`) and of `modules`."""
        registry = cls()
        for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda e: e.name):
            registry.add_module(_import(entry.module, f"entry point {entry.name}"))
        for name in modules:
            registry.add_module(_import(name, "setting executors"))
        return registry

    def only(self, types: Iterable[str]) -> Registry:
        """The same with these types alone; raises ExecutorError for one that has no executor here."""
        if unknown := sorted(set(types) - set(self._by_type)):
            raise ExecutorError(f"there is no executor for type {unknown[0]!r}; known types: {', '.join(self.types)}")
        return Registry(self._by_type[type] for type in types)

    def add_module(self, module: ModuleType) -> None:
        """Adds what `module` declares itself, not what it merely imports from others."""
        for value in vars(module).values():
            spec = getattr(value, _MARK, None)
            if isinstance(spec, Executor) and getattr(value, "__module__", None) == module.__name__:
                self.add(spec)

    def add(self, spec: Executor) -> None:
        """Adds one executor; the same one twice is no error."""
        known = self._by_type.setdefault(spec.type, spec)
        if known.source != spec.source:
            raise ExecutorError(f"two executors for type {spec.type!r}: {known.source} and {spec.source}; remove one")

    def get(self, type: str) -> Executor | None:
        """The executor of a type, or None."""
        return self._by_type.get(type)

    @property
    def types(self) -> list[str]:
        """All types, sorted."""
        return sorted(self._by_type)

    def __iter__(self) -> Iterator[Executor]:
        return iter(self._by_type.values())

    def __len__(self) -> int:
        return len(self._by_type)


def _import(name: str, origin: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ExecutorError as exc:
        raise ExecutorError(f"executors in {name!r} ({origin}): {exc}") from exc
    except (Exception, SystemExit) as exc:  # a module's top level may do anything
        reason = " ".join(str(exc).split()) or "no reason given"
        kind = "" if isinstance(exc, ImportError) else f"{type(exc).__name__}: "
        raise ExecutorError(f"cannot import executors from {name!r} ({origin}): {kind}{reason}") from exc
