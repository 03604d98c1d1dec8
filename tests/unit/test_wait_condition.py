"""Conditions of wait_until: what holds, what never does, and what is refused."""

import json
import time
from decimal import Decimal
from typing import Any

import pytest
from dispatcher_executors.wait_condition import Condition
from dispatcher_executors.wait_until import WaitUntilPayload, wait_until
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from dispatcher.executor import Registry
from dispatcher.schema_check import compile_schema
from dispatcher.testing import run_inline

CONDITION: TypeAdapter[Any] = TypeAdapter(Condition)
HTTP = {"http": {"url": "https://example.com"}}
UNTIL = {"path": "/status", "equals": 200}


def holds(condition: dict[str, Any], answer: Any) -> bool:
    result: bool = CONDITION.validate_python(condition).holds(answer)
    return result


@pytest.mark.parametrize(
    ("comparison", "value", "expected"),
    [
        ({"equals": 1}, 1.0, True),
        ({"equals": 1}, True, False),
        ({"equals": True}, 1, False),
        ({"equals": 0}, False, False),
        ({"equals": 1}, "1", False),
        ({"equals": None}, None, True),
        ({"equals": [1, {"a": 2.0}]}, [1.0, {"a": 2}], True),
        ({"equals": [1, {"a": True}]}, [1, {"a": 1}], False),
        ({"equals": {"a": 1}}, {"a": 1, "b": 2}, False),
        ({"not_equals": "pending"}, "done", True),
        ({"not_equals": None}, None, False),
        ({"at_least": 3}, 3, True),
        ({"at_least": 3}, 2.999, False),
        ({"at_least": 3}, "4", False),
        ({"at_least": 0}, True, False),
        ({"at_least": 0}, None, False),
        ({"at_least": 9007199254740993}, 9007199254740992, False),
        ({"at_most": 3}, 3, True),
        ({"at_most": 3}, 3.1, False),
        ({"at_least": 1, "at_most": 2}, 3, False),
        ({"in": ["a", 2]}, 2.0, True),
        ({"in": ["a", 2]}, "b", False),
        ({"exists": True}, 0, True),
        ({"exists": True}, None, False),
        ({"exists": False}, None, True),
        ({"exists": False}, "", False),
        ({"contains": "ead"}, "ready", True),
        ({"contains": "x"}, ["xy"], False),
        ({"contains": 1}, [2, 1.0], True),
        ({"contains": "a"}, {"a": 1}, False),
        ({"starts_with": "rea"}, "ready", True),
        ({"starts_with": "ea"}, "ready", False),
        ({"as": "hex", "at_least": 26}, "0x1a", True),
        ({"as": "hex", "at_least": 27}, "0x1a", False),
        ({"as": "hex", "equals": 1}, "0x01", True),
        ({"as": "hex", "equals": 26}, 26, True),
        ({"as": "hex", "in": [1, 26]}, "0X1A", True),
        ({"as": "hex", "equals": 2**255}, hex(2**255), True),
        ({"as": "hex", "equals": 2**255}, hex(2**255 + 1), False),
        ({"as": "hex", "at_least": 0}, "1a", False),
        ({"as": "hex", "at_least": 0}, "0x", False),
        ({"as": "hex", "at_least": 0}, "0x1_0", False),
        ({"as": "hex", "at_least": 0}, "0x" + "f" * 1_000_000, False),
        ({"as": "hex", "not_equals": 0}, "none", False),
        ({"as": "number", "equals": 0.1}, "0.10", True),
        ({"as": "number", "at_least": 12.5}, "12.499999999999999999", False),
        ({"as": "number", "at_least": 0}, "NaN", False),
        ({"as": "number", "at_least": 0}, "Infinity", False),
        ({"as": "number", "at_least": 0}, "1e999999999999999999999", False),
        ({"as": "number", "at_most": 5}, "1e999999", False),
    ],
)
def test_value_is_compared_as_json_has_it(comparison: dict[str, Any], value: Any, expected: bool) -> None:
    assert holds({"path": "/a", **comparison}, {"a": value}) is expected


@pytest.mark.parametrize(
    "comparison",
    [
        {"equals": None},
        {"not_equals": "pending"},
        {"at_least": -1},
        {"at_most": 1},
        {"in": [None, 1]},
        {"exists": True},
        {"contains": ""},
        {"starts_with": ""},
        {"as": "hex", "not_equals": 0},
    ],
)
@pytest.mark.parametrize("answer", [{}, {"a": None}, {"a": []}, {"a": "text"}, None, []])
def test_path_that_leads_nowhere_never_holds(comparison: dict[str, Any], answer: Any) -> None:
    """A spelling mistake must not end the wait."""
    assert not holds({"path": "/a/b", **comparison}, answer)
    assert holds({"path": "/a/b", "exists": False}, answer)


# RFC 6901, section 5.
DOCUMENT = {"foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5, 'k"l': 6, " ": 7, "m~n": 8}
POINTERS = {
    "": DOCUMENT,
    "/foo": ["bar", "baz"],
    "/foo/0": "bar",
    "/": 0,
    "/a~1b": 1,
    "/c%d": 2,
    "/e^f": 3,
    "/g|h": 4,
    "/i\\j": 5,
    '/k"l': 6,
    "/ ": 7,
    "/m~0n": 8,
}


@pytest.mark.parametrize("path", POINTERS)
def test_paths_are_those_of_the_rfc(path: str) -> None:
    assert CONDITION.validate_python({"path": path, "exists": True}).value(DOCUMENT) == POINTERS[path]


@pytest.mark.parametrize("path", ["/foo/2", "/foo/-", "/foo/-1", "/foo/00", "/foo/+1", "/foo/1 ", "/foo/١", "/foo/0/0"])
def test_list_has_only_the_elements_that_it_has(path: str) -> None:
    assert not holds({"path": path, "exists": True}, DOCUMENT)


def test_tilde_is_unescaped_once() -> None:
    assert holds({"path": "/~01", "equals": 1}, {"~1": 1, "/": 2})


@given(st.lists(st.text(), max_size=4), st.integers())
def test_any_key_can_be_reached(keys: list[str], value: int) -> None:
    answer: Any = value
    for key in reversed(keys):
        answer = {key: answer}
    path = "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in keys)
    assert holds({"path": path, "equals": value}, answer)


def test_all_and_any() -> None:
    one, two = {"path": "/a", "equals": 1}, {"path": "/b", "equals": 2}
    assert holds({"all": [one, two]}, {"a": 1, "b": 2})
    assert not holds({"all": [one, two]}, {"a": 1})
    assert holds({"any": [one, two]}, {"b": 2})
    assert not holds({"any": [one, two]}, {"a": 2, "b": 1})


def test_message_names_the_comparison_that_fails() -> None:
    group = CONDITION.validate_python({"all": [{"path": "/a", "equals": 1}, {"path": "/b", "at_least": 2}]})
    assert group.told({"a": 1, "b": 0}) == "/b is 0"
    check = CONDITION.validate_python({"path": "/a", "as": "hex", "at_least": 1})
    assert check.told({"a": "soon"}) == '/a is "soon", which is no hexadecimal number'
    assert check.told({"b": 1}) == "/a is not there"


@pytest.mark.parametrize("hostile", ["(a+)+$", "a" * 100_000 + "!", "{__import__('os')}", "%s%n", "/*"])
def test_hostile_text_is_only_a_text(hostile: str) -> None:
    started = time.process_time()  # not what others do meanwhile
    answer = {"a": "a" * 1_000_000}
    for comparison in ("equals", "contains", "starts_with"):
        assert not holds({"path": "/a", comparison: hostile}, answer)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ({"path": "/a"}, "give a comparison"),
        ({"path": "/a", "as": "hex"}, "give a comparison"),
        ({"path": "result.confirmations", "equals": 1}, "JSON Pointer"),
        ({"path": "/a~2", "equals": 1}, "JSON Pointer"),
        ({"path": "/a" * 501, "equals": 1}, "1000"),
        ({"path": "/a", "matches": "(a+)+$"}, "matches"),
        ({"path": "/a", "at_least": "3"}, "at_least"),
        ({"path": "/a", "at_least": True}, "at_least"),
        ({"path": "/a", "at_least": None}, "at_least"),
        ({"path": "/a", "at_least": float("inf")}, "at_least"),
        ({"path": "/a", "in": []}, "in"),
        ({"path": "/a", "in": 5}, "in"),
        ({"path": "/a", "as": "int", "equals": 1}, "as"),
        ({"path": "/a", "as": "hex", "equals": "0x1"}, "write numbers"),
        ({"path": "/a", "as": "hex", "in": [1, True]}, "write numbers"),
        ({"path": "/a", "as": "hex", "starts_with": "0x"}, "are for texts"),
        ({}, "all and any"),
        ({"all": []}, "all"),
        ({"all": [{"path": "/a", "exists": True}], "any": [{"path": "/a", "exists": True}]}, "all and any"),
        ({"all": [{"any": [{"path": "/a", "exists": True}]}]}, "path"),
        ({"any": [{"path": "/a", "exists": True}] * 21}, "20"),
        ("status == 200", "dictionary"),
    ],
)
def test_condition_that_could_mean_something_else_is_refused(condition: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        CONDITION.validate_python(condition)


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"until": UNTIL}, "give one of http, json_rpc and query"),
        ({**HTTP, "query": {"name": "q"}, "until": UNTIL}, "give one of http, json_rpc and query"),
        (HTTP, "until"),
        ({**HTTP, "until": UNTIL, "deadline": "soon"}, "write a duration"),
        ({**HTTP, "until": UNTIL, "deadline": "2030-01-31T12:00:00"}, "with its zone"),
        ({**HTTP, "until": UNTIL, "deadline": 0}, "deadline"),
        ({**HTTP, "until": UNTIL, "deadline": 1_700_000_000}, "deadline"),
        ({**HTTP, "until": UNTIL, "every": 0}, "every"),
        ({**HTTP, "until": UNTIL, "every": 0.01}, "0.1 seconds"),
        ({**HTTP, "until": UNTIL, "every": "1min", "max_every": 5}, "must not be shorter"),
        ({**HTTP, "until": UNTIL, "backoff": 0.5}, "backoff"),
        ({**HTTP, "until": UNTIL, "jitter": 1.5}, "jitter"),
        ({**HTTP, "until": UNTIL, "timeout": 0}, "timeout"),
        ({**HTTP, "until": UNTIL, "errors": "ignore"}, "errors"),
        ({**HTTP, "until": UNTIL, "sql": "select 1"}, "sql"),
        ({"query": {"sql": "select 1"}, "until": UNTIL}, "name"),
        ({"query": {"name": "q", "sql": "select 1"}, "until": UNTIL}, "sql"),
        ({"http": {"url": "https://example.com", "callback": {}}, "until": UNTIL}, "callback"),
        ({"http": {"url": "https://example.com", "headers": {"Host": "x"}}, "until": UNTIL}, "Host"),
        ({"json_rpc": {"url": "https://example.com", "method": ""}, "until": UNTIL}, "method"),
        ({"json_rpc": {"url": "https://example.com", "method": "m", "params": 5}, "until": UNTIL}, "params"),
        ({"json_rpc": {"url": "https://a.example", "method": "m", "headers": {"Host": "x"}}, "until": UNTIL}, "Host"),
    ],
)
def test_payload_that_makes_no_sense_is_refused(payload: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        WaitUntilPayload.model_validate(payload)
    ended = run_inline(wait_until, payload)
    assert ended.state == "failed"


def test_pauses_grow_up_to_a_bound() -> None:
    def pauses(**more: Any) -> list[float]:
        payload = WaitUntilPayload.model_validate({**HTTP, "until": UNTIL, "jitter": 0, **more})
        return [payload.pause_s(looks) for looks in (1, 2, 3, 1000, 10**6)]

    assert pauses() == [5, 7.5, 11.25, 60, 60]
    assert pauses(every="2min") == [120] * 5
    assert pauses(every=1, backoff=2, max_every="3s") == [1, 2, 3, 3, 3]
    assert pauses(every=10, backoff=1) == [10] * 5


def test_pauses_differ_by_the_jitter_and_no_more() -> None:
    payload = WaitUntilPayload.model_validate({**HTTP, "until": UNTIL, "jitter": 0.5, "every": 10})
    pauses = [payload.pause_s(1) for _ in range(200)]
    assert len(set(pauses)) > 1
    assert all(5 <= pause <= 15 for pause in pauses)


def test_it_is_installed_and_its_schema_is_published() -> None:
    spec = Registry.load().get("wait_until")
    assert spec is not None
    assert (spec.limit, spec.timeout_s, spec.retry.retry_timeouts) == (32, 60, True)
    schema = spec.schema()
    assert schema is not None
    assert (schema["required"], schema["additionalProperties"]) == (["until"], False)
    good = {**HTTP, "until": {"all": [{"path": "/body/n", "as": "hex", "in": [1]}]}, "deadline": "2030-01-31T12:00:00Z"}
    check = compile_schema(schema)
    assert check(json.loads(json.dumps(good))) is None
    assert check({**HTTP, "until": {"path": "/a", "equal": 1}}) is not None


def test_numbers_are_exact() -> None:
    assert holds({"path": "/a", "as": "number", "equals": 10**30}, {"a": str(Decimal(10) ** 30)})
