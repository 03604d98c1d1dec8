"""Statistics: rates and quantiles of the types."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from dispatcher.api.context import TheApi, TheCaller
from dispatcher.api.requests import Name
from dispatcher.api.routes.docs import problems
from dispatcher.api.views import StatsView
from dispatcher.queries.stats import read_stats

router = APIRouter(tags=["stats"])


@router.get("/stats", response_model=StatsView, summary="Rates and quantiles", responses=problems())
async def get_stats(
    api: TheApi,
    caller: TheCaller,
    tenant: Annotated[Name | None, Query(description="Of this tenant's jobs only.")] = None,
) -> Any:
    """What was settled in the last minute, hour and day, by type, some seconds late. The replicas count as they work:
    it costs the same however many jobs there are."""
    if caller.tenant is not None and tenant not in (None, caller.tenant):
        return {"types": []}
    return {"types": await api.db.run(read_stats(caller.tenant or tenant))}
