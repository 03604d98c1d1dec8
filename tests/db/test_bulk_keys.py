"""Unique keys in bulk: each payload is answered with the unfinished job of its key, and nobody locks anybody out."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import psycopg
import pytest

from dispatcher import AsyncClient, Client
from dispatcher.db import Connection
from dispatcher.errors import InvalidOption
from tests.db.contenders import until, waits
from tests.db.linking import in_threads
from tests.db.running import enqueue, publish, value

MANY = (
    "select array_agg(id order by position), array_agg(created order by position)"
    " from dispatcher.enqueue_many_unique('quick', %s::jsonb[], %s::jsonb)"
    " with ordinality as e (id, created, position)"
)


def many(conn: psycopg.Connection[Any], keys: list[str | None], **options: Any) -> tuple[list[int], list[bool]]:
    payloads = [json.dumps({"n": n}) for n in range(len(keys))]
    row = conn.execute(MANY.encode(), (payloads, json.dumps({"unique_keys": keys, **options}))).fetchone()
    assert row is not None
    return row[0], row[1]


def test_answers_come_in_the_payloads_order(conn: Connection) -> None:
    publish(conn)
    there = enqueue(conn, unique_key="m")
    ids, created = many(conn, ["z", None, "m", "a", "z", None])
    assert created == [True, True, False, True, False, True]
    assert (ids[2], ids[4]) == (there, ids[0])
    assert ids[0] < ids[1] < ids[3] < ids[5]  # they run in the payloads' order, not in that of the keys
    rows = conn.execute(
        "select id, payload ->> 'n' from dispatcher.job where id <> %s order by id", (there,)
    ).fetchall()
    assert rows == [(ids[0], "0"), (ids[1], "1"), (ids[3], "3"), (ids[5], "5")]
    conn.execute("update dispatcher.job set state = 'succeeded', finished_at = now() where id = %s", (ids[0],))
    assert many(conn, ["z"])[1] == [True]  # finished: the key is free again


def test_fifty_callers_with_the_same_keys_in_different_orders(dsn: str, conn: Connection) -> None:
    publish(conn)
    keys: list[str | None] = [f"key {n}" for n in range(40)]

    def call(turn: int) -> list[int]:
        with psycopg.connect(dsn) as own:
            order = keys[turn:] + keys[:turn] if turn % 2 else keys[::-1]
            ids, _ = many(own, order)
            return [id for _, id in sorted(zip(map(str, order), ids, strict=True))]

    answers = in_threads(*(lambda turn=turn: call(turn) for turn in range(50)))
    assert all(answer == answers[0] for answer in answers), answers
    assert value(conn, "select count(*) from dispatcher.job") == len(keys)


def test_job_that_ends_while_its_key_is_looked_for_locks_nobody_out(dsn: str, conn: Connection) -> None:
    """Its key is free then, and to be taken after all: behind greater keys, which another caller waits for."""
    publish(conn)
    ends = enqueue(conn, unique_key="a")
    conn.execute(
        "create function hold() returns trigger language plpgsql as"
        " $$ begin perform pg_advisory_xact_lock_shared(77); return null; end $$"
    )
    conn.execute("create trigger hold after insert on dispatcher.job for each statement execute function hold()")
    answers: dict[str, Any] = {}

    def call(name: str, own: psycopg.Connection[Any]) -> None:
        answers[name] = many(own, ["b", "a"])

    with (
        psycopg.connect(dsn, autocommit=True) as gate,
        psycopg.connect(dsn, autocommit=True) as one,
        psycopg.connect(dsn, autocommit=True) as two,
    ):
        gate.execute("select pg_advisory_lock(77)")
        first = threading.Thread(target=call, args=("one", one))
        first.start()
        assert waits(conn, one.info.backend_pid, "advisory")  # it has seen that the key is taken
        conn.execute("update dispatcher.job set state = 'succeeded', finished_at = now() where id = %s", (ends,))
        second = threading.Thread(target=call, args=("two", two))
        second.start()
        assert waits(conn, two.info.backend_pid, "transactionid")
        gate.execute("select pg_advisory_unlock(77)")
        first.join()
        second.join()
    assert answers["one"][0] == answers["two"][0]
    assert sorted(created for _, new in answers.values() for created in new) == [False, False, True, True]
    assert value(conn, "select count(*) from dispatcher.job") == 3


def test_fifty_callers_with_one_key_make_one_job(dsn: str, conn: Connection) -> None:
    publish(conn)

    def call() -> tuple[int, bool]:
        with Client(dsn) as client:
            return client.enqueue_unique("quick", {}, unique_key="k")

    answers = in_threads(*([call] * 50))
    assert len({id for id, _ in answers}) == 1
    assert sorted(created for _, created in answers) == [False] * 49 + [True]
    assert value(conn, "select count(*) from dispatcher.job") == 1


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_first_one_is_answered_whatever_isolation_level_the_role_begins_with(
    dsn: str, conn: Connection, level: str
) -> None:
    publish(conn)
    conn.execute(
        f"alter role current_user in database {conn.info.dbname} set default_transaction_isolation = '{level}'".encode()
    )

    async def ask_async() -> list[tuple[int, bool]]:
        async with AsyncClient(dsn) as client:
            return [await client.enqueue_unique("quick", unique_key="k")]

    def ask() -> list[tuple[int, bool]]:
        with Client(dsn) as client:
            return [client.enqueue_unique("quick", unique_key="k")]

    def ask_for_many() -> list[tuple[int, bool]]:
        with Client(dsn) as client:
            return client.enqueue_many_unique("quick", [{}], ["k"])

    with psycopg.connect(dsn) as first:
        id = enqueue(first, unique_key="k")
        answers: list[Any] = []
        others = threading.Thread(
            target=lambda: answers.extend(in_threads(ask, ask_for_many, lambda: asyncio.run(ask_async())))
        )
        others.start()
        waiting = "select count(*) = 3 from pg_stat_activity where wait_event = 'transactionid' and datname = %s"
        assert until(conn, waiting, conn.info.dbname)
        first.commit()
        others.join()
    assert answers == [[(id, False)]] * 3


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"unique_keys": ["a"]}, "there are 2 payloads and 1 unique_keys"),
        ({"unique_keys": "a"}, "option 'unique_keys' must be an array"),
        ({"unique_keys": ["a", 1]}, "option 'unique_keys' must be an array"),
        ({"unique_keys": ["a", ""]}, "option 'unique_keys' must be an array"),
        ({"unique_key": "a"}, "option 'unique_key' names one job"),
        ({"unique_keys": ["a", "b"], "parent": 1}, "a job of a batch has no unique key"),
        ({"callback": {"type": "quick"}}, "option 'callback' is for a batch"),
    ],
)
def test_bad_keys_write_nothing(conn: Connection, options: dict[str, Any], reason: str) -> None:
    publish(conn)
    for function in ("enqueue_many_unique", "enqueue_many"):
        with pytest.raises(psycopg.Error, match=reason) as caught:
            conn.execute(
                f"select * from dispatcher.{function}('quick', '{{\"{{}}\",\"{{}}\"}}', %s::jsonb)".encode(),
                (json.dumps(options),),
            )
        assert caught.value.sqlstate == "DJ004"
    with pytest.raises(psycopg.Error, match="are for many jobs and for a batch"):
        conn.execute("select dispatcher.enqueue('quick', '{}', '{\"unique_keys\": [\"a\"]}')")
    assert value(conn, "select count(*) from dispatcher.job") == 0


def test_client_takes_a_key_for_each_payload(dsn: str, conn: Connection) -> None:
    publish(conn)
    with Client(dsn) as client:
        first = client.enqueue_many_unique("quick", [{}, {}, {}], ["a", "b", None], tenant="t")
        assert [created for _, created in first] == [True] * 3
        again = client.enqueue_many_unique("quick", [{}, {}, {}], ["b", "c", None])
        assert [created for _, created in again] == [False, True, True]
        assert again[0][0] == first[1][0]
        for keys in (["a"], "ab", ["a", 1], ["a", ""], ["a", "\0"]):
            with pytest.raises(InvalidOption):
                client.enqueue_many_unique("quick", [{}, {}], keys)  # type: ignore[arg-type]
    assert value(conn, "select count(*) from dispatcher.job") == 5
