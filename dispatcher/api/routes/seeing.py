"""What a caller may see and name of jobs; what it may not does not exist for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Path

from dispatcher.api import scope
from dispatcher.api.context import Api, Runner
from dispatcher.api.problems import ApiError
from dispatcher.api.requests import MAX_ID
from dispatcher.api.tokens import Principal
from dispatcher.errors import InvalidOption, JobNotFound
from dispatcher.options import Options
from dispatcher.queries.serving import Document, get_owners

JobId = Annotated[int, Path(ge=1, le=MAX_ID, description="The id of a job.")]


async def see(api: Api, caller: Principal, id: int) -> Document:
    """The job, if the caller may see it; what it may not see does not exist."""
    found = await api.jobs.get(id, caller.tenant)
    if found is None:
        raise JobNotFound(f"there is no job {id}")
    return found


def options_of(caller: Principal, given: Any, names: Sequence[str] = ()) -> Options:
    """What a body says about a job, as the operations take it, within the caller's tenant."""
    options: dict[str, Any] = {
        name: value for name in names or Options.__annotations__ if (value := getattr(given, name, None)) is not None
    }
    if caller.tenant is not None:
        if options.setdefault("tenant", caller.tenant) != caller.tenant:
            raise ApiError(403, "the token is of another tenant")
        if options.get("parent") is not None:
            del options["tenant"]  # a batch's jobs are of its tenant
    if (key := options.get("unique_key")) is not None:
        options["unique_key"] = scope.stored_key(caller.tenant, key)
    return options  # type: ignore[return-value] # by its names


def tenant_of(caller: Principal, options: Options) -> str:
    """Whose jobs they will be, as far as can be told; empty for nobody's."""
    return caller.tenant or options.get("tenant") or ""  # the options of a batch's jobs leave it to the batch


async def check_references(runner: Runner, caller: Principal, after: Sequence[int] | None, parent: int | None) -> None:
    """Refuses jobs that the caller cannot see as if they did not exist."""
    ids = [*(after or ()), *([] if parent is None else [parent])]
    if caller.tenant is None or not ids:
        return
    owners = await runner.run(get_owners(ids))
    for id in ids:
        if owners.get(id) != caller.tenant:
            raise InvalidOption(f"option {'parent' if id == parent else 'after'!r}: there is no job {id}")
