"""Who enqueues, cancels and retries during a storm: a seeded stream of operations, and what of it was committed.

Each enqueue is a transaction of its own. Where its answer is lost nobody knows whether it was committed: then it is
not among `enqueued`, and what is there of it has to keep the promises all the same.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from datetime import datetime
from typing import Any

import psycopg

from tests.storm.history import Enqueued
from tests.storm.plan import ORPHAN_AFTER_S

PAUSE_S = 0.05  # between two operations, on average
RECONNECT_S = 0.1
TENANTS = ("ada", "bob", "eve")
KEYS = ("one", "two", "three")
MOST_WAITING = 400  # with what may take a second each, on fourteen places, well within a minute
MOST_RATED = 150  # at eight a second
WAITING = """
    select array[count(*), count(*) filter (where type = 'rated')]
    from dispatcher.job where listed in ('pending', 'scheduled')"""
SCHEDULES = (("every-all", "all"), ("every-one", "one"), ("every-skip", "skip"))


class Load:
    """A thread of operations until `stop()`."""

    def __init__(self, dsn: str, seed: int) -> None:
        self._dsn = dsn
        self._rng = random.Random(f"load {seed}")
        self._stop = threading.Event()
        self._conn: psycopg.Connection | None = None
        self._number = 0
        self._plain: list[int] = []  # may be canceled or retried
        self.enqueued: list[Enqueued] = []
        self.canceled: set[int] = set()
        self.canceled_at: dict[int, float] = {}
        self.scheduled: list[datetime] = []
        """The database's time once the schedules were added, and before they were removed."""
        self.retried: Counter[int] = Counter()
        self.refused: Counter[str] = Counter()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def start(self) -> None:
        """Adds the schedules and begins."""
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            for name, catch_up in SCHEDULES:
                conn.execute(
                    "select dispatcher.add_schedule(%s, '* * * * *', 'tick', %s, %s)",
                    [name, json.dumps({"schedule": name}), json.dumps({"catch_up": catch_up})],
                )
            self.scheduled += self._times(conn)
        self._thread.start()

    def stop(self) -> None:
        """Ends it, and the schedules."""
        self._stop.set()
        self._thread.join(30)
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            self.scheduled += self._times(conn)
            for name, _ in SCHEDULES:
                conn.execute("select dispatcher.remove_schedule(%s)", [name])
        if self.failure is not None:
            raise self.failure

    @staticmethod
    def _times(conn: psycopg.Connection) -> list[datetime]:
        return [at for (at,) in conn.execute("select clock_timestamp()")]

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    self._step()
                except psycopg.OperationalError as exc:  # the server is away, or had to refuse
                    self.refused[type(exc).__name__] += 1
                    self._conn = None
                    self._stop.wait(RECONNECT_S)
                self._stop.wait(self._rng.expovariate(1 / PAUSE_S))
        except BaseException as exc:  # noqa: BLE001 # told by whoever stops it
            self.failure = exc

    def _step(self) -> None:
        """Nothing while more waits than can be done in the calm after the storm."""
        [waiting, rated] = self._execute(WAITING)[0]
        if waiting > MOST_WAITING or rated > MOST_RATED:
            return
        operations = (self._one, self._many, self._chain, self._batch, self._unique, self._cancel, self._retry)
        [operation] = self._rng.choices(operations, (30, 4, 3, 1, 4, 3, 2))
        operation()

    def _one(self) -> None:
        type, payload, options = self._draw()
        self._plain += self._enqueue("select dispatcher.enqueue(%s, %s, %s)", type, payload, options)

    def _many(self) -> None:
        """More than the rate and the limits let start at once."""
        [type] = self._rng.choices(("quick", "rated", "limited", "shared"), (6, 2, 1, 1))
        payloads = [self._numbered({}) for _ in range(self._rng.randrange(2, 30))]
        options = {"tenant": self._rng.choice(TENANTS)} if type == "shared" else {}
        self._enqueue("select dispatcher.enqueue_many(%s, %s::jsonb[], %s)", type, payloads, options)

    def _chain(self) -> None:
        """Three jobs, each after the one before; the middle one may fail."""
        first_type = self._rng.choice(("quick", "sleeper", "limited", "flaky", "effect"))
        [first] = self._enqueue("select dispatcher.enqueue(%s, %s, %s)", first_type, self._payload(first_type), {})
        way = self._rng.choice(("fail", "partial", "raise"))
        [second] = self._enqueue_after([first], "doomed", {"way": way}, "cancel")
        self._enqueue_after([first, second], "quick", {}, self._rng.choice(("run", "cancel")))

    def _enqueue_after(self, after: list[int], type: str, payload: dict[str, Any], on_failure: str) -> list[int]:
        options = {"after": after, "on_failure": on_failure}
        payload = self._numbered(payload | options)
        return self._enqueue("select dispatcher.enqueue(%s, %s, %s)", type, payload, options)

    def _batch(self) -> None:
        name = self._number
        type = self._rng.choice(("sleeper", "limited", "doomed", "flaky"))
        payloads = [self._payload(type) | {"batch": name} for _ in range(self._rng.randrange(1, 15))]
        options = {"callback": {"type": "callback", "payload": self._numbered({"callback_of": name})}}
        [id] = self._enqueue("select dispatcher.enqueue_batch(%s, %s::jsonb[], %s)", type, payloads, options)
        if self._rng.random() < 0.1:
            self._cancel_one(id)

    def _unique(self) -> None:
        options = {"unique_key": self._rng.choice(KEYS)}
        self._enqueue("select dispatcher.enqueue(%s, %s, %s)", "sleeper", self._payload("sleeper"), options)

    def _cancel(self) -> None:
        if self._plain:
            self._cancel_one(self._rng.choice(self._plain[-50:]))

    def _cancel_one(self, id: int) -> None:
        self.canceled.add(id)
        self._execute("select dispatcher.cancel(%s)", id)
        self.canceled_at.setdefault(id, time.monotonic())

    def _retry(self) -> None:
        """Of a job that has ended otherwise than well: what has succeeded cannot be retried."""
        if self._plain:
            id = self._rng.choice(self._plain[-200:])
            self.retried[id] += 1
            try:
                self._execute("select dispatcher.retry(%s)", id)
            except psycopg.errors.DatabaseError as exc:
                if exc.sqlstate != "DJ006":
                    raise
                self.retried[id] -= 1

    def _draw(self) -> tuple[str, dict[str, Any], dict[str, Any]]:
        types = {"quick": 6, "sleeper": 6, "long": 2, "stubborn": 2, "limited": 4, "shared": 6, "rated": 4, "flaky": 3}
        types |= {"doomed": 3, "late": 1, "effect": 5, "compute": 2, "coroutine": 3, "steps": 4}
        [type] = self._rng.choices(list(types), list(types.values()))
        options: dict[str, Any] = {"priority": self._rng.choice((0, 0, 0, -1, 1))}
        if type == "shared":
            options["tenant"] = self._rng.choice(TENANTS)
        if self._rng.random() < 0.15:
            options["delay"] = round(self._rng.uniform(0.05, 3.0), 2)
        return type, self._payload(type), options

    def _payload(self, type: str) -> dict[str, Any]:
        seconds = round(min(self._rng.expovariate(1 / 0.12), 3.0), 3)
        if type in ("long", "stubborn"):
            seconds = round(self._rng.uniform(0.5, 2 * ORPHAN_AFTER_S), 3)
        more: dict[str, Any] = {"times": self._rng.randrange(5)} if type == "flaky" else {}
        if type == "doomed":
            more = {"way": self._rng.choice(("fail", "raise", "cancel", "partial"))}
        if type == "steps":
            more = {"steps": self._rng.randrange(1, 8)}
        return self._numbered({"seconds": seconds} | more)

    def _numbered(self, payload: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        return payload | {"n": self._number}

    def _enqueue(self, statement: str, type: str, payload: Any, options: dict[str, Any]) -> list[int]:
        many = isinstance(payload, list)
        what = [json.dumps(each) for each in payload] if many else json.dumps(payload)
        at = time.monotonic()
        ids = self._execute(statement, type, what, json.dumps(options))
        if "callback" in options:
            self.enqueued += [Enqueued(id, at, "batch", jobs=len(payload)) for id in ids]
        else:
            delay_s, key = options.get("delay", 0.0), options.get("unique_key")
            each = payload if many else [payload]
            self.enqueued += [Enqueued(id, at, type, one["n"], delay_s, key) for id, one in zip(ids, each, strict=True)]
        return ids

    def _execute(self, statement: str, *params: Any) -> list[Any]:
        if self._conn is None or self._conn.closed:
            self._conn = psycopg.connect(self._dsn, autocommit=True, connect_timeout=5)
        return [value for (value,) in self._conn.execute(statement.encode(), params)]
