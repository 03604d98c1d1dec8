"""What people may do with jobs, as rules: each through any front door, and in the model."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, multiple, rule

from dispatcher import Callback
from tests.db.job_model import AGAIN, Model, ModelJob, Schedule
from tests.db.job_world import (
    TYPES,
    World,
    agree,
    database_doors,
    doors,
    names,
    options,
    payloads,
    sent,
    states,
    told,
    types,
)


class People(RuleBasedStateMachine):
    """They enqueue and interfere."""

    world: World
    jobs = Bundle("jobs")
    batches = Bundle("batches")

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(limits={"limited": 2}, tenant_limits={"shared": 1})
        self.attempts: set[tuple[int, int]] = set()
        self.world.empty()

    def door(self, name: str) -> Any:
        return self.world.doors[name]

    # They enqueue.

    @rule(
        target=jobs,
        door=doors,
        type=types,
        payload=payloads,
        given=options,
        key=st.sampled_from([None, None, "k", "%s"]),
    )
    def enqueue(self, door: str, type: str, payload: Any, given: dict[str, Any], key: str | None) -> Any:
        return self._enqueue(door, type, payload, given if key is None else given | {"unique_key": key})

    @rule(
        target=jobs, door=doors, type=types, given=options, after=st.lists(jobs, min_size=1, max_size=2, unique=True),
        on_failure=st.sampled_from([None, "cancel", "run"]), same_tenant=st.sampled_from([True, True, True, False]),
    )  # fmt: skip
    def enqueue_after(
        self, door: str, type: str, given: dict[str, Any], after: list[int], on_failure: str | None, same_tenant: bool
    ) -> Any:
        given = given | {"after": after} | ({} if on_failure is None else {"on_failure": on_failure})
        return self._enqueue(door, type, {}, self._of_same_tenant(given, after[0]) if same_tenant else given)

    @rule(
        target=jobs, door=doors, type=types, given=options, parent=st.one_of(batches, batches, jobs),
        after=st.lists(jobs, max_size=1),
    )  # fmt: skip
    def join(self, door: str, type: str, given: dict[str, Any], parent: int, after: list[int]) -> Any:
        given = self._of_same_tenant(given, parent) | {"parent": parent} | ({"after": after} if after else {})
        return self._enqueue(door, type, {}, given)

    @rule(target=jobs, door=doors, type=types, many=st.lists(payloads, min_size=1, max_size=3), given=options)
    def enqueue_many(self, door: str, type: str, many: list[Any], given: dict[str, Any]) -> Any:
        ours, theirs = sent(given)
        got = told(lambda: self.door(door).enqueue_many(type, many, **ours))
        assert got == told(lambda: self.model.enqueue_many(got, type, many, **theirs))
        return multiple(*got)

    @rule(
        target=jobs, door=doors, type=types, many=st.lists(payloads, min_size=1, max_size=3), given=options,
        callback=st.none() | st.tuples(types, payloads), after=st.lists(jobs, max_size=1),
    )  # fmt: skip
    def enqueue_batch(
        self, door: str, type: str, many: list[Any], given: dict[str, Any], callback: Any, after: list[int]
    ) -> Any:
        given = self._of_same_tenant(given, after[0]) | {"after": after} if after else given
        ours, theirs = sent(given)
        wanted = None if callback is None else Callback(*callback)
        got = told(lambda: self.door(door).batch(type, many, callback=wanted, **ours))
        refused = isinstance(got, str)
        children = [] if refused else [row["id"] for row in self.world.rows(
            f"select id from dispatcher.job where parent_id = {got} order by id")]  # fmt: skip
        back = None if refused or callback is None else self.world.callback_of(got)
        want = told(lambda: self.model.enqueue_batch(got, children, back, type, many, callback, **theirs))
        if not agree(got, want if refused else got) or want is not None:
            assert refused, want
            return multiple()
        return multiple(got, got, *children, *filter(None, [back]))

    @rule(target=batches, job=jobs)
    def name_batch(self, job: int) -> Any:
        found = self.model.jobs.get(job)
        return job if found and found.batch else multiple()

    def _enqueue(self, door: str, type: str, payload: Any, given: dict[str, Any]) -> Any:
        ours, theirs = sent(given)
        got = told(lambda: tuple(self.door(door).enqueue_unique(type, payload, **ours)))
        ids = [] if isinstance(got, str) else got[:1]
        return got[0] if agree(got, told(lambda: self.model.enqueue(ids, type, payload, **theirs))) else multiple()

    def _of_same_tenant(self, given: dict[str, Any], id: int) -> dict[str, Any]:
        found = self.model.jobs.get(id)
        others = {name: value for name, value in given.items() if name != "tenant"}
        return others | ({"tenant": found.tenant} if found and found.tenant else {})

    # They interfere.

    @rule(door=doors, job=jobs)
    def cancel(self, door: str, job: int) -> None:
        agree(told(lambda: self.door(door).cancel(job)), told(lambda: self.model.cancel(job)))

    @rule(door=doors, job=jobs)
    def retry(self, door: str, job: int) -> None:
        got = told(lambda: self.door(door).retry(job))
        agree(got, told(lambda: self.model.retry(job, self.world.callback_of)))

    @rule(door=doors, at=st.integers(0, 99))
    def retry_troubled(self, door: str, at: int) -> None:
        if troubled := [job.id for job in self.model.jobs.values() if job.state in AGAIN]:
            self.retry(door, troubled[at % len(troubled)])

    @rule(
        target=jobs, door=doors, type=types, at=st.lists(st.integers(0, 99), min_size=1, max_size=2),
        on_failure=st.sampled_from(["cancel", "run"]),
    )  # fmt: skip
    def follow(self, door: str, type: str, at: list[int], on_failure: str) -> Any:
        """A job after the latest ones."""
        latest = sorted(self.model.jobs, reverse=True)[:4]
        if not latest:
            return multiple()
        tenant = self.model.jobs[latest[at[0] % len(latest)]].tenant
        after = {latest[one % len(latest)] for one in at}
        given = {"after": sorted(id for id in after if self.model.jobs[id].tenant == tenant), "on_failure": on_failure}
        return self._enqueue(door, type, {}, given | ({} if tenant is None else {"tenant": tenant}))

    @rule(door=database_doors, states=states, type=st.none() | types, kind=st.sampled_from([None, None, "fail"]))
    def retry_where(self, door: str, states: list[str], type: str | None, kind: str | None) -> None:
        filters, matched = self._matching(states, type, kind)
        assert self.door(door).count_ended(**filters) == len(matched)
        got = tuple(self.door(door).retry_where(**filters))
        assert got == self.model.retry_where(matched, self.world.callback_of)

    @rule(door=database_doors, states=states, succeeded=st.booleans(), type=st.none() | types)
    def purge(self, door: str, states: list[str], succeeded: bool, type: str | None) -> None:
        filters, matched = self._matching([*states, *(["succeeded"] if succeeded else [])], type, None)
        doomed = [job for job in matched if self.model.removable(job)]
        assert tuple(self.door(door).purge(**filters)) == (len(doomed), len(matched) - len(doomed))
        self.model.remove(doomed)

    def _matching(self, states: list[str], type: str | None, kind: str | None) -> tuple[dict[str, Any], list[ModelJob]]:
        filters = {"state": states, "type": type, "kind": kind}
        given = {name: value for name, value in filters.items() if value is not None}
        return given, self.model.matching(states, type, None, kind)

    @rule(door=doors, type=types, paused=st.sampled_from([True, False, False]))
    def pause(self, door: str, type: str, paused: bool) -> None:
        act = self.door(door).pause if paused else self.door(door).resume
        assert act(type) is (paused is not (type in self.model.paused))
        (self.model.paused.add if paused else self.model.paused.discard)(type)

    @rule(door=doors, type=types, limit=st.sampled_from([1, 2, None]), of_tenants=st.booleans())
    def set_limit(self, door: str, type: str, limit: int | None, of_tenants: bool) -> None:
        self.door(door).set_limit(type, **{"tenant_limit" if of_tenants else "limit": limit})
        known = self.model.tenant_limits if of_tenants else self.model.limits
        known.pop(type, None)
        if own := limit or (TYPES[type].tenant_limit if of_tenants else TYPES[type].limit):
            known[type] = own

    @rule(door=doors, name=names, type=types, payload=payloads, given=options, key=st.sampled_from([None, "k"]))
    def add_schedule(
        self, door: str, name: str, type: str, payload: Any, given: dict[str, Any], key: str | None
    ) -> None:
        given = {n: v for n, v in given.items() if n != "when"} | ({} if key is None else {"unique_key": key})
        self.door(door).add_schedule(name, "0 0 1 1 *", type, payload, **given)
        paused = name in self.model.schedules and self.model.schedules[name].paused
        self.model.schedules[name] = Schedule(type, payload, given, paused)

    @rule(door=doors, name=names, act=st.sampled_from(["pause", "resume", "remove"]))
    def change_schedule(self, door: str, name: str, act: str) -> None:
        found = self.model.schedules.get(name)
        got = told(lambda: getattr(self.door(door), f"{act}_schedule")(name))
        if found is None:
            agree(got, "refused: ScheduleNotFound")
        elif act == "remove":
            assert got is None
            del self.model.schedules[name]
        else:
            assert got is (found.paused is not (act == "pause"))
            found.paused = act == "pause"

    @rule(target=jobs, door=doors, name=names)
    def trigger_schedule(self, door: str, name: str) -> Any:
        got = told(lambda: self.door(door).trigger_schedule(name))
        found = self.model.schedules.get(name)
        if found is None:
            agree(got, "refused: ScheduleNotFound")
            return multiple()
        assert got == self.model.enqueue([got], found.type, found.payload, **found.options)[0]
        return got
