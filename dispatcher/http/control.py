"""Calls about types, schedules and the fleet."""

from __future__ import annotations

import json
from typing import Any

from dispatcher.errors import InvalidOption, UnknownType
from dispatcher.filters import checked_tenant
from dispatcher.front.control import Unchanged
from dispatcher.http.exchange import Call, Request, in_path
from dispatcher.http.reading import fill, read, type_stats
from dispatcher.operations import check_schedule, checked_type
from dispatcher.options import Options, encode_options, encode_payload
from dispatcher.outcome import encode
from dispatcher.queries.fleet import LeaderInfo, ReplicaInfo, TypeInfo
from dispatcher.queries.schedules import ScheduleInfo, known_name, new_name
from dispatcher.queries.stats import TypeStats


class ControlCalls:
    """For one client."""

    def types(self) -> Call[list[TypeInfo]]:
        """All types."""
        return read((yield Request.get("/types")), lambda body: [fill(TypeInfo, one) for one in body["types"]])

    def pause(self, type: str) -> Call[bool]:
        """Whether it was not paused before."""
        return read((yield Request.post(f"{_type(type)}/pause")), _changed, missing=UnknownType)

    def resume(self, type: str) -> Call[bool]:
        """Whether it was paused."""
        return read((yield Request.post(f"{_type(type)}/resume")), _changed, missing=UnknownType)

    def set_limit(self, type: str, limits: dict[str, Any], tenant: str | None) -> Call[None]:
        """Changes those that are not UNCHANGED."""
        changes = {name: value for name, value in limits.items() if not isinstance(value, Unchanged)}
        if not changes:
            raise InvalidOption("give at least one of limit, tenant_limit, rate and burst")
        try:
            body = encode(changes if tenant is None else {**changes, "tenant": tenant})
        except (TypeError, ValueError) as exc:
            raise InvalidOption(f"these limits cannot be sent: {exc}") from None
        return read((yield Request.post(f"{_type(type)}/limit", body)), _nothing, missing=UnknownType)

    def stats(self, tenant: str | None) -> Call[list[TypeStats]]:
        """Rates and quantiles of the types."""
        query = [] if tenant is None else [("tenant", checked_tenant(tenant))]
        return read((yield Request.get("/stats", query)), lambda body: [type_stats(one) for one in body["types"]])

    def schedules(self) -> Call[list[ScheduleInfo]]:
        """All schedules."""
        answer = yield Request.get("/schedules")
        return read(answer, lambda body: [fill(ScheduleInfo, one) for one in body["schedules"]])

    def add_schedule(
        self, name: str, cron: str, type: str, payload: Any, zone: str, catch_up: str, options: Options
    ) -> Call[None]:
        """Adds a schedule, or changes it."""
        check_schedule(cron, zone, catch_up, options)
        given = json.loads(encode_options(options))
        given |= {"name": new_name(name), "cron": cron, "zone": zone, "catch_up": catch_up}
        given |= {"type": checked_type(type), "payload": json.loads(encode_payload(payload))}
        return read((yield Request.post("/schedules", encode(given))), _nothing)

    def remove_schedule(self, name: str) -> Call[None]:
        """Removes one."""
        answer = yield Request.delete(_schedule(name))
        if not answer.good:
            read(answer, _nothing)

    def pause_schedule(self, name: str) -> Call[bool]:
        """Whether it was not paused before."""
        return read((yield Request.post(f"{_schedule(name)}/pause")), _changed)

    def resume_schedule(self, name: str) -> Call[bool]:
        """Whether it was paused, or stopped by an error."""
        return read((yield Request.post(f"{_schedule(name)}/resume")), _changed)

    def trigger_schedule(self, name: str) -> Call[int]:
        """The job's id."""
        return read((yield Request.post(f"{_schedule(name)}/trigger")), lambda body: int(body["id"]))

    def replicas(self) -> Call[list[ReplicaInfo]]:
        """All replicas."""
        answer = yield Request.get("/replicas")
        return read(answer, lambda body: [fill(ReplicaInfo, one) for one in body["replicas"]])

    def leader(self, lease: str) -> Call[LeaderInfo | None]:
        """Who leads, or None."""
        try:
            return read((yield Request.get("/leader", [("lease", lease)])), _leader, missing=InvalidOption)
        except InvalidOption:  # nobody leads, or no lease can have this name
            return None


def _leader(body: Any) -> LeaderInfo:
    return fill(LeaderInfo, body)


def _type(type: str) -> str:
    return f"/types/{in_path(checked_type(type))}"


def _schedule(name: str) -> str:
    return f"/schedules/{in_path(known_name(name))}"


def _changed(body: Any) -> bool:
    return bool(body["changed"])


def _nothing(_body: Any) -> None:
    """What a good answer tells is of no interest."""
