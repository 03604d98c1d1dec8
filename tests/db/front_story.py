"""The same story through any client: what each step answered, or which error it raised."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from dispatcher import Callback
from tests.db.contenders import contender, register
from tests.db.front_door import MAX_BYTES, end, publish

Connection = psycopg.Connection[Any]
Step = Callable[[str, Callable[[], Any]], Any]
Steps = Callable[..., None]
SOON = datetime(2100, 1, 31, 12, tzinfo=UTC)


class Told:
    """(step, its answer or the class of its error), one after the other."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, Any]] = []

    def step(self, name: str, act: Callable[[], Any]) -> Any:
        """Tells one step."""
        try:
            answer = act()
        except Exception as exc:  # noqa: BLE001 - which one it is, is the point
            self.steps.append((name, type(exc)))
            return None
        self.steps.append((name, answer))
        return answer

    def steps_of(self, name: str, *acts: Callable[[], Any]) -> None:
        """Tells several, most of them refused."""
        for at, act in enumerate(acts):
            self.step(f"{name} {at}", act)


def tell(client: Any, conn: Connection) -> list[tuple[str, Any]]:
    """The whole story, in a database that is as good as new."""
    told = Told()
    publish(conn)
    one, scheduled = _jobs(told.step, client, conn)
    batch = _batch(told.step, client)
    _lists(told.step, client)
    _control(told.step, client, conn)
    _refused_jobs(told.steps_of, client, batch)
    _refused(told.steps_of, client, one, scheduled)
    return told.steps


def _jobs(step: Step, client: Any, conn: Connection) -> tuple[int, int]:
    one = step("enqueue", lambda: client.enqueue("any", {"x": "日本", "y": [1, 2.5, None]}, priority=3, tenant="acme"))
    step("get", lambda: client.get(one))
    step("early result", lambda: client.result(one))
    step("explain", lambda: client.explain(one))
    later = step("later", lambda: client.enqueue("any", run_at=SOON, timeout="1min", max_attempts=2))
    step("get later", lambda: client.get(later))
    step("retry at once", lambda: client.retry(later))
    step("cancel", lambda: client.cancel(later))
    step("cancel twice", lambda: client.cancel(later))
    step("canceled result", lambda: client.result(later))
    step("wait", lambda: client.wait(later, timeout="5s"))
    step("wait for several", lambda: client.wait([later, later]))
    step("wait in vain", lambda: client.wait([one, later], timeout=0.05))
    step("unique", lambda: client.enqueue_unique("any", unique_key="k"))
    step("unique again", lambda: client.enqueue_unique("any", unique_key="k"))
    many = step("many", lambda: client.enqueue_many("any", [{"n": n} for n in range(3)], delay=timedelta(hours=1)))
    step("many unique", lambda: client.enqueue_many_unique("any", [{}, {}, {}], ["k", None, "l"]))
    step("none", lambda: client.enqueue_many("any", []))
    step("after", lambda: client.get(client.enqueue("any", after=[one, many[0]], on_failure="run")))
    end(conn, one, "succeeded", result={"rows": 3})
    step("result", lambda: client.result(one))
    step("get ended", lambda: client.get(one))
    end(conn, many[0], "failed", error="no such table")
    step("failed result", lambda: client.result(many[0]))
    step("get failed", lambda: client.get(many[0]))
    return one, many[1]


def _batch(step: Step, client: Any) -> int:
    batch = step(
        "batch",
        lambda: client.batch(
            "any", [{"n": 1}, {"n": 2}], tenant="acme", callback=Callback("any", {"c": 1}, {"delay": 5})
        ),
    )
    step("get batch", lambda: client.get_batch(batch))
    step("join", lambda: client.enqueue("any", parent=batch))
    step("children", lambda: client.list(parent=batch))
    step("cancel batch", lambda: client.cancel(batch))
    return int(batch)


def _lists(step: Step, client: Any) -> None:
    step("list", lambda: client.list(limit=100))
    step("list few", lambda: client.list(state=["failed", "succeeded"], since=3600, limit=1))
    step("list by kind", lambda: client.list(kind="exception", until=SOON))
    step("page", lambda: client.page(type="any", tenant="acme", limit=2))
    step("page from the start", lambda: client.page(before=0))
    step("list without end", lambda: client.list(limit=0))


def _control(step: Step, client: Any, conn: Connection) -> None:
    step("types", client.types)
    step("pause", lambda: client.pause("any"))
    step("pause twice", lambda: client.pause("any"))
    step("resume", lambda: client.resume("any"))
    step("set limit", lambda: client.set_limit("any", limit=3, rate="100/min", burst=5))
    step("set tenant's", lambda: client.set_limit("any", limit=2, tenant="acme"))
    step("unset limit", lambda: client.set_limit("any", limit=None))
    step("limited types", client.types)
    step(
        "add schedule",
        lambda: client.add_schedule("nightly", "0 3 * * *", "any", {"a": 1}, zone="Europe/Berlin", priority=2),
    )
    step("schedules", client.schedules)
    step("pause schedule", lambda: client.pause_schedule("nightly"))
    step("pause schedule twice", lambda: client.pause_schedule("nightly"))
    step("resume schedule", lambda: client.resume_schedule("nightly"))
    step("trigger schedule", lambda: client.get(client.trigger_schedule("nightly")))
    step("remove schedule", lambda: client.remove_schedule("nightly"))
    step("remove schedule twice", lambda: client.remove_schedule("nightly"))
    step("nobody leads", client.leader)
    step("nobody leads that", lambda: client.leader("no lease can be called so"))
    with contender(conn.info.dsn, register(conn), duration_s=30) as lease:
        assert lease.connect()
        assert lease.contend()
        step("leader", client.leader)
        step("replicas", client.replicas)
        step("explain with a leader", lambda: client.explain(client.enqueue("any")))


def _refused_jobs(steps: Steps, client: Any, batch: int) -> None:
    steps(
        "enqueue",
        lambda: client.enqueue("unknown"),
        lambda: client.enqueue("un known?"),
        lambda: client.enqueue("\0"),
        lambda: client.enqueue("any", [1]),
        lambda: client.enqueue("any", {"x": float("nan")}),
        lambda: client.enqueue("any", {"x": "x" * MAX_BYTES}),
        lambda: client.enqueue("import", {"rows": [{}]}),
        lambda: client.enqueue("any", run_at=datetime(2030, 1, 1)),  # noqa: DTZ001 - that is the point
        lambda: client.enqueue("any", run_at=SOON, delay=1),
        lambda: client.enqueue("any", delay=-1),
        lambda: client.enqueue("any", nonsense=1),
        lambda: client.enqueue("any", priority="high"),
        lambda: client.enqueue("any", timeout=0),
        lambda: client.enqueue("any", after=10**15),
        lambda: client.enqueue("any", parent=10**15),
        lambda: client.enqueue("any", parent=batch),
        lambda: client.enqueue("any", unique_key=""),
        lambda: client.enqueue_many("unknown", []),
        lambda: client.enqueue_many("unknown", [{}]),
        lambda: client.enqueue_many("any", [{}, {"x": "x" * MAX_BYTES}]),
        lambda: client.enqueue_many("any", [{}, 1]),
        lambda: client.enqueue_many("any", [{}], unique_key="k"),
        lambda: client.enqueue_many("any", 5),
        lambda: client.enqueue_many("any", None),
        lambda: client.enqueue_many("any", "{}"),
        lambda: client.enqueue_many_unique("any", 5, []),
        lambda: client.enqueue_many_unique("any", [{}], 5),
        lambda: client.batch("any", 5),
        lambda: client.enqueue_many_unique("any", [{}], ["a", "b"]),
        lambda: client.enqueue_many_unique("any", [{}], "a"),
        lambda: client.batch("any", []),
        lambda: client.batch("any", [{}], unique_key="k"),
        lambda: client.batch("any", [{}], callback=Callback("unknown")),
        lambda: client.batch("any", [{}], callback=3),
        lambda: client.batch("any", [{}], callback=Callback("any", options={"after": 1})),
    )


def _refused(steps: Steps, client: Any, one: int, scheduled: int) -> None:
    for method in ("get", "result", "wait", "cancel", "retry", "explain", "get_batch"):
        call = getattr(client, method)
        steps(method, *(lambda id=id, call=call: call(id) for id in (0, -1, 10**12, 2**63, "x", None, True)))
    steps(
        "others",
        lambda: client.get_batch(one),
        lambda: client.retry(scheduled),
        lambda: client.retry(scheduled),
        lambda: client.wait([one, 10**12]),
        lambda: client.wait("x"),
        lambda: client.wait(one, timeout=-1),
        lambda: client.list(state="nonsense"),
        lambda: client.list(state=[]),
        lambda: client.list(since=datetime(2030, 1, 1)),  # noqa: DTZ001 - that is the point
        lambda: client.list(type=""),
        lambda: client.list(type="no such type, nor could there be one"),
        lambda: client.list(tenant=" é\n", kind="?&="),
        lambda: client.list(parent=0),
        lambda: client.list(limit=-1),
        lambda: client.page(limit=0),
        lambda: client.page(before="x"),
        lambda: client.pause("unknown"),
        lambda: client.resume("../jobs"),
        lambda: client.set_limit("unknown", limit=1),
        lambda: client.set_limit("any", limit=0),
        lambda: client.set_limit("any", rate="often"),
        lambda: client.set_limit("any", limit=float("nan")),
        lambda: client.set_limit("any"),
        lambda: client.add_schedule("s", "nonsense", "any"),
        lambda: client.add_schedule("s", "0 3 * * *", "any", zone="Nowhere"),
        lambda: client.add_schedule("s", "0 3 * * *", "unknown"),
        lambda: client.add_schedule("s", "0 3 * * *", "any", catch_up="never"),
        lambda: client.add_schedule("s", "0 3 * * *", "any", delay=5),
        lambda: client.add_schedule("s!", "0 3 * * *", "any"),
        lambda: client.add_schedule("s", "0 3 * * *", "any", {"x": "x" * MAX_BYTES}),
        lambda: client.pause_schedule("none"),
        lambda: client.resume_schedule("s!"),
        lambda: client.trigger_schedule("none"),
        lambda: client.remove_schedule("none"),
    )


def timeless(told: Any) -> str:
    """Without what differs between two runs: times, and who it was."""
    text = re.sub(r"datetime\.datetime\((?:[^()]|\([^()]*\))*\)", "<time>", repr(told))
    text = re.sub(r"20\d\d-\d\d-\d\d[T ][\d:.]+(?:\+00:00|Z)?", "<time>", text)
    return re.sub(r"\d+\.\d+ s\b", "<s>", text)
