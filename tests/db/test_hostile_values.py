"""Values that look like code, that PostgreSQL cannot hold, or that are too deep: kept exactly, or refused in a line."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from io import StringIO
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from dispatcher import Callback, Context, Fail, Job, Partial, executor
from dispatcher.errors import DispatcherError
from dispatcher.executor import Executor
from dispatcher.job import JobInfo
from dispatcher.logs import LONGEST, _Json
from dispatcher.testing import Queue
from tests.db.front_doors import DOORS, opened
from tests.db.running import QUICK, nothing, publish, value
from tests.db.serving import Served

TEXTS = [
    "'", '"', "';drop table dispatcher.job;--", "%", "%s", "%(x)s", "%%", "$1", "$$", "$body$", ":x", "{}", "{0}", "\\",
    "\\u0000", "\\\\u0000", "\\'", "\t\r\n\v\f", "\x01\x1f\x7f\x85", "\u2028\u2029", "\ufeff\ufffe\uffff",
    "\u202etxt.exe", "\u05e9\u05dc\u05d5\u05dd", "🇩🇪👩‍👧", "e\u0301",
    "null", "NaN", "1e400", "--help", "-1", "@file", "~", "..", "/",
    " ", "\x1b[31m", "a" * 200, "日" * 200,
]  # fmt: skip
UNSTORABLE = ["a\0b", "\ud800", "x\udfff", "\udcff"]  # NUL, halves of a surrogate pair, a byte that was no UTF-8
TOO_LONG = "a" * 201
NUMBERS = [float("nan"), float("inf"), float("-inf")]
EXACT = [0, -1, 2**63, -(2**80), 0.1, 1e15, 5e-324, -0.0, True, None, 10**4299]
HTTP_DEPTH, DEPTH = 100, 500


class Tree(BaseModel):
    """A payload that may be as deep as it likes."""

    below: list[Tree] = []


TREE = Executor("tree", nothing, "tests.tree", payload=Tree)
Doors = dict[str, Any]


@pytest.fixture
def doors(dsn: str, conn: psycopg.Connection[Any]) -> Iterator[Doors]:
    publish(conn, QUICK, TREE, max_payload_bytes=2**21)
    with ExitStack() as stack:
        yield stack.enter_context(opened(dsn, stack.enter_context(Served(dsn))))


def jobs(conn: psycopg.Connection[Any]) -> int:
    return int(value(conn, "select count(*) from dispatcher.job"))


def shown(doors: Doors, id: int) -> JobInfo:
    """The job, which each door must show alike."""
    first, *others = [doors[name].get(id) for name in DOORS]
    assert all(other == first for other in others)
    return first  # type: ignore[no-any-return]


def nested(levels: int) -> dict[str, Any]:
    inner: Any = []
    for _ in range(levels - 2):
        inner = [inner]
    return {"x": inner}


# What can be stored.


@pytest.mark.parametrize("name", DOORS)
def test_text_that_looks_like_code_is_data_in_every_door(doors: Doors, name: str) -> None:
    door, payload = doors[name], {text: [text, {text: text}] for text in TEXTS}
    ids = door.enqueue_many("quick", [payload, {"n": EXACT}])
    batch = door.batch("quick", [payload], callback=Callback("quick", payload))
    door.add_schedule("s", "0 0 1 1 *", "quick", payload, unique_key="%s'$1")
    ids += [door.enqueue_unique("quick", payload)[0], door.trigger_schedule("s")]
    ids += [doors["client"].list(parent=batch)[0].id, doors["client"].get_batch(batch).callback_id]
    assert [shown(doors, id).payload for id in ids] == [payload, {"n": EXACT}, *[payload] * 4]


@pytest.mark.parametrize("name", DOORS)
def test_tenant_and_unique_key_that_look_like_code_are_names(doors: Doors, name: str) -> None:
    for text in TEXTS:
        id, created = doors[name].enqueue_unique("quick", {}, tenant=text, unique_key=text)
        assert created
        assert doors[name].enqueue_unique("quick", {}, tenant=text, unique_key=text) == (id, False)
        job = doors["client"].get(id)
        assert (job.tenant, job.unique_key) == (text, text)
        assert [one.id for one in doors["client"].list(tenant=text)] == [id]
        doors["client"].cancel(id)


# What cannot: each act is refused with an error of ours, in one line, and the door goes on.


def refused(act: Callable[[], Any]) -> None:
    with pytest.raises(DispatcherError) as caught:
        act()
    assert "\n" not in str(caught.value).removesuffix("\n")
    assert "unexpected" not in str(caught.value)
    str(caught.value).encode()


def sql_refuses(act: Callable[[], Any]) -> None:
    """A program that speaks SQL hears PostgreSQL itself say that this is no text, no JSON, or too deep to read."""
    with pytest.raises(
        (DispatcherError, psycopg.DataError, UnicodeEncodeError, psycopg.errors.StatementTooComplex)
    ) as caught:
        act()
    assert not isinstance(caught.value, RecursionError)


def refuses(name: str) -> Callable[[Callable[[], Any]], None]:
    return sql_refuses if name == "sql" else refused


@pytest.mark.parametrize("name", DOORS)
def test_text_that_cannot_be_stored_is_refused_in_one_line(
    doors: Doors, conn: psycopg.Connection[Any], name: str
) -> None:
    for bad in UNSTORABLE:
        refuse_text(doors[name], refuses(name), name, bad)
    assert jobs(conn) == 0
    assert doors[name].enqueue_unique("quick", {})[1]


def refuse_text(door: Any, no: Callable[[Callable[[], Any]], None], name: str, bad: str) -> None:
    for payload in ({"x": bad}, {bad: 1}, {"x": [{"y": bad}]}):
        no(partial(door.enqueue_unique, "quick", payload))
        no(partial(door.enqueue_many, "quick", [{}, payload]))
        no(partial(door.batch, "quick", [{}, payload]))
        no(partial(door.batch, "quick", [{}], callback=Callback("quick", payload)))
        no(partial(door.add_schedule, "s", "0 0 1 1 *", "quick", payload))
    for option in ("tenant", "unique_key"):
        no(partial(door.enqueue_unique, "quick", {}, **{option: bad}))
        no(partial(door.add_schedule, "s", "0 0 1 1 *", "quick", {}, **{option: bad}))
    no(partial(door.enqueue_unique, bad, {}))
    no(partial(door.pause, bad))
    no(partial(door.set_limit, "quick", limit=1, tenant=bad))
    for act in (door.pause_schedule, door.trigger_schedule, door.remove_schedule):
        no(partial(act, bad))
    no(partial(door.add_schedule, bad, "0 0 1 1 *", "quick", {}))
    no(partial(door.add_schedule, "s", bad, "quick", {}))
    if name != "http":
        for field in ("type", "tenant", "kind", "message"):
            no(partial(door.retry_where, **{field: bad}))
            no(partial(door.count_ended, **{field: bad}))


@pytest.mark.parametrize("name", DOORS)
def test_names_too_long_and_numbers_that_are_none_are_refused_in_one_line(
    doors: Doors, conn: psycopg.Connection[Any], name: str
) -> None:
    door, no = doors[name], refuses(name)
    for number in NUMBERS:
        no(partial(door.enqueue_unique, "quick", {"x": number}))
        no(partial(door.enqueue_many, "quick", [{"x": [number]}]))
        no(partial(door.enqueue_unique, "quick", {}, delay=number))
        no(partial(door.enqueue_unique, "quick", {}, timeout=number))
    for option in ("tenant", "unique_key"):
        no(partial(door.enqueue_unique, "quick", {}, **{option: TOO_LONG}))
        no(partial(door.enqueue_unique, "quick", {}, **{option: ""}))
    for type in (TOO_LONG, "a" * 100_000, "", *TEXTS):
        no(partial(door.enqueue_unique, type, {}))
        no(partial(door.pause, type))
        no(partial(door.trigger_schedule, type))
    assert jobs(conn) == 0
    assert door.enqueue_unique("quick", {})[1]


@pytest.mark.parametrize("name", DOORS)
def test_payload_too_deep_for_the_next_reader_is_refused_in_one_line(
    doors: Doors, conn: psycopg.Connection[Any], name: str
) -> None:
    for levels in (DEPTH + 1, 940, 990, 3000):
        refuse_levels(doors[name], conn, name, levels)
    assert jobs(conn) == 0


def refuse_levels(door: Any, conn: psycopg.Connection[Any], name: str, levels: int) -> None:
    payload, no = json_text(levels), refuses(name)
    if name == "sql":
        for query in (
            "select dispatcher.enqueue('quick', %s::jsonb)",
            "select dispatcher.enqueue_many('quick', array['{}', %s]::jsonb[])",
            "select dispatcher.enqueue_batch('quick', array[%s]::jsonb[])",
            "select dispatcher.add_schedule('s', '0 0 1 1 *', 'quick', %s::jsonb)",
        ):
            with pytest.raises(psycopg.errors.DatabaseError, match="nested too deeply; the limit is 500 levels"):
                conn.execute(query, (payload,))
    elif name == "cli":
        no(partial(door, "enqueue", "quick", payload))
        no(partial(door, "enqueue", "quick", "-", stdin=payload))
        no(partial(door, "enqueue", "quick", "--file", "-", stdin="{}\n" + payload))
        no(partial(door, "enqueue", "quick", "--file", "-", "--batch", stdin="{}\n" + payload))
        no(partial(door, "schedule", "add", "s", "0 0 1 1 *", "quick", payload))
    else:
        deep = nested(levels)
        no(partial(door.enqueue_unique, "quick", deep))
        no(partial(door.enqueue_many, "quick", [{}, deep]))
        no(partial(door.batch, "quick", [deep]))
        no(partial(door.batch, "quick", [{}], callback=Callback("quick", deep)))
        no(partial(door.add_schedule, "s", "0 0 1 1 *", "quick", deep))


@pytest.mark.parametrize("name", DOORS)
def test_number_too_long_for_the_next_reader_is_refused_in_one_line(
    doors: Doors, conn: psycopg.Connection[Any], name: str
) -> None:
    for number in ("1e4300", "-1e4300", "1e131071", "1" * 5000):
        refuse_number(doors[name], conn, name, f'{{"x": [{number}]}}')
    assert jobs(conn) == 0


def refuse_number(door: Any, conn: psycopg.Connection[Any], name: str, payload: str) -> None:
    if name == "sql":
        for query in (
            "select dispatcher.enqueue('quick', %s::jsonb)",
            "select dispatcher.enqueue_many('quick', array['{}', %s]::jsonb[])",
            "select dispatcher.add_schedule('s', '0 0 1 1 *', 'quick', %s::jsonb)",
        ):
            with pytest.raises(psycopg.errors.DatabaseError, match="a number of more than 4300 digits"):
                conn.execute(query, (payload,))
    elif name == "cli":
        refused(lambda: door("enqueue", "quick", payload))
        refused(lambda: door("enqueue", "quick", "--file", "-", stdin="{}\n" + payload))
    else:
        refused(lambda: door.enqueue_unique("quick", {"x": [10**4300]}))
        refused(lambda: door.enqueue_many("quick", [{}, {"x": [10**4300]}]))


def json_text(levels: int) -> str:
    return '{"x":' + "[" * (levels - 1) + "]" * (levels - 1) + "}"


@pytest.mark.parametrize("name", DOORS)
def test_payload_as_deep_as_allowed_is_shown_by_every_door(doors: Doors, name: str) -> None:
    payload = nested(HTTP_DEPTH if name == "http" else DEPTH)
    id, _ = doors[name].enqueue_unique("quick", payload)
    assert shown(doors, id).payload == payload
    assert doors["client"].list()[0].payload == payload


@pytest.mark.parametrize("name", DOORS)
def test_a_megabyte_of_brackets_costs_no_session(doors: Doors, conn: psycopg.Connection[Any], name: str) -> None:
    text, door = json_text(2**19), doors[name]
    if name == "sql":
        with pytest.raises(psycopg.errors.StatementTooComplex):
            conn.execute("select dispatcher.enqueue('quick', %s::jsonb)", (text,))
    elif name == "cli":
        refused(lambda: door("enqueue", "quick", "-", stdin=text))
        refused(lambda: door("enqueue", "quick", "--file", "-", stdin=text))
    else:
        refused(lambda: door.enqueue_unique("quick", nested(2**19)))
    assert door.enqueue_unique("quick", {})[1]


def test_tree_deeper_than_its_check_follows_is_no_recursion_error(doors: Doors) -> None:
    payload: dict[str, Any] = {}
    for _ in range(DEPTH // 2 - 1):
        payload = {"below": [payload]}
    for name in ("client", "async", "cli"):
        id, _ = doors[name].enqueue_unique("tree", payload)
        assert json.dumps(shown(doors, id).payload) == json.dumps(payload)


# What executors say.

MESSAGES = [*TEXTS, *UNSTORABLE, "x" * 20_000]


def test_whatever_an_executor_says_is_kept_readable(
    dsn: str, conn: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What pytest captures of a log goes on to another process, which some of this cannot. Our own handler escapes it.
    written = StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(_Json())
    monkeypatch.setattr(logging.getLogger("dispatcher"), "propagate", False)
    monkeypatch.setattr(logging.getLogger("dispatcher"), "handlers", [handler])
    said = iter(MESSAGES)

    @executor("says")
    def says(_job: Job, ctx: Context) -> Any:
        text = next(said)
        ctx.progress(1, text)
        ctx.logger.warning("said %s", text, extra={"text": text})
        if ctx.attempt == 1 and text in TEXTS:
            return {text: text}
        raise Fail(text)

    with Queue(dsn, [says]) as queue, ExitStack() as stack:
        doors = stack.enter_context(opened(dsn, stack.enter_context(Served(dsn))))
        for text in MESSAGES:
            id = queue.enqueue("says")
            queue.drain()
            job = shown(doors, id)
            if text in TEXTS:
                assert (job.state, job.result) == ("succeeded", {text: text})
                assert doors["http"].result(id) == {text: text}
            else:
                [error] = job.errors
                assert error["message"].encode()
            assert job.progress_message
            for name in ("client", "async", "http"):
                assert doors[name].list(limit=1) == [job]
                assert doors[name].explain(id)
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert [line["text"][:LONGEST] for line in lines if "text" in line] == [text[:LONGEST] for text in MESSAGES]
    assert written.getvalue().isascii()


def test_result_that_no_reader_could_read_fails_its_job_alone(dsn: str) -> None:
    results: list[Any] = [nested(DEPTH + 1), {"x": -(10**4300)}, Partial(nested(990), []), nested(DEPTH)]

    @executor("returns")
    def returns(job: Job, _ctx: Context) -> Any:
        return results[job.payload["at"]]

    with Queue(dsn, [returns]) as queue:
        for at in range(len(results)):
            queue.enqueue("returns", {"at": at})
        ended = queue.drain()
        assert [job.state for job in ended] == ["failed", "failed", "failed", "succeeded"]
        assert [error["kind"] for job in ended for error in job.errors] == ["result"] * 3
        assert len(queue.client.list()) == len(results)
