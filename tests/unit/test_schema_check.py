"""schema_check: refuses what the model would refuse, names the field, and never refuses what the model takes."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dispatcher.schema_check import compile_schema


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Row(BaseModel):
    name: str = Field(max_length=5)
    tags: set[str] = Field(default=set(), max_length=2)


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    bones: float


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


class Everything(BaseModel):
    model_config = ConfigDict(extra="forbid")

    count: int = Field(default=0, ge=0, lt=100, multiple_of=2)
    ratio: float = 0.5
    flag: bool = False
    text: str = Field(default="ab", min_length=2, max_length=4, pattern="^[a-z ]+$")
    color: Color = Color.RED
    level: Level = Level.LOW
    mode: Literal["a", "b", 3] = "a"
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None
    rows: list[Row] = Field(default=[], max_length=3)
    pair: tuple[int, str] = (1, "x")
    table: dict[str, int] = {}
    at: datetime | None = None
    day: date | None = None
    span: timedelta | None = None
    price: Decimal | None = None
    key: UUID | None = None
    either: int | list[str] = 1
    tree: Tree | None = None
    anything: Any = None


FIELDS = list(Everything.model_fields)
check = compile_schema(Everything.model_json_schema())


def misfit(payload: dict[str, Any]) -> str | None:
    found = check(payload)
    return None if found is None else str(found)


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        ({"rows": [{"name": "a"}, {}]}, "rows.1.name: is missing"),
        (
            {"rows": [{"name": "a"}, {"name": "b"}, {"name": 5}]},
            "rows.2.name: must be a string, not a number",
        ),
        ({"rows": [{"name": "abcdefg"}]}, "rows.0.name: must have at most 5 characters"),
        ({"rows": [{"name": "a"}] * 4}, "rows: must have at most 3 items"),
        ({"rows": "x"}, "rows: must be an array, not a string"),
        ({"count": -2}, "count: must be at least 0"),
        ({"count": 100}, "count: must be less than 100"),
        ({"count": 3}, "count: must be a multiple of 2"),
        ({"count": "x"}, "count: must be an integer, not a string"),
        ({"count": 1.5}, "count: must be an integer, not a number"),
        ({"count": None}, "count: must be an integer, not null"),
        ({"flag": "maybe"}, "flag: must be a boolean, not a string"),
        ({"text": "a"}, "text: must have at least 2 characters"),
        ({"text": "A1"}, "text: must match '^[a-z ]+$'"),
        ({"color": "green"}, "color: must be one of 'red', 'blue'"),
        ({"mode": "c"}, "mode: must be one of 'a', 'b', 3"),
        ({"pair": [1]}, "pair: must have at least 2 items"),
        ({"pair": [1, "x", 2]}, "pair: must have at most 2 items"),
        ({"pair": ["x", "x"]}, "pair.0: must be an integer, not a string"),
        ({"table": {"a": "x"}}, "table.a: must be an integer, not a string"),
        ({"extra": 1}, "extra: is no known field"),
        ({"pet": {"kind": "cat"}}, "pet.lives: is missing"),
        (
            {"tree": {"value": 1, "children": [{"value": 2, "children": [{}]}]}},
            "tree.children.0.children.0.value: is missing",
        ),
        ({"either": {}}, "either: must be an integer, not an object, or must be an array, not an object"),
    ],
)
def test_misfit_names_the_field(payload: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError):
        Everything.model_validate(payload)
    assert misfit(payload) == told


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"count": "4"},
        {"count": 4.0},
        {"count": "4.0"},
        {"ratio": 1},
        {"ratio": "1.5"},
        {"flag": 1},
        {"flag": "yes"},
        {"flag": "OFF"},
        {"level": 2},
        {"level": "2"},
        {"mode": 3},
        {"at": "2030-01-31T12:00:00Z"},
        {"at": 1700000000},
        {"day": "2030-01-31"},
        {"span": 5},
        {"span": "PT5S"},
        {"price": "1.25"},
        {"price": 1.25},
        {"key": "12345678-1234-5678-1234-567812345678"},
        {"rows": [{"name": "a", "tags": ["x", "x", "x", "y"]}]},
        {"pet": {"kind": "dog", "bones": 1}},
        {"either": ["x"]},
        {"either": "7"},
        {"tree": {"value": 1, "children": [{"value": "2", "children": []}]}},
        {"anything": {"deep": [1, None]}},
    ],
)
def test_what_the_model_converts_is_not_refused(payload: dict[str, Any]) -> None:
    Everything.model_validate(payload)
    assert misfit(payload) is None


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1000, 1000)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.sampled_from(["1", " 2 ", "1.0", "1_000", "yes", "red", "cat", "dog", "a", "inf", "nan", "2030-01-31", "٣"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["name", "tags", "kind", "lives", "bones", "value", "children", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(FIELDS), values, max_size=3))
def test_nothing_that_the_model_takes_is_refused(payload: dict[str, Any]) -> None:
    try:
        Everything.model_validate(payload)
    except ValidationError:
        return
    assert misfit(payload) is None


class Stripped(BaseModel):
    model_config = ConfigDict(str_strip_whitespace=True)

    code: str = Field(max_length=3, pattern="^[a-z]+$")


def test_blanks_that_the_model_strips_do_not_count() -> None:
    payload = {"code": "  abc "}
    Stripped.model_validate(payload)
    assert compile_schema(Stripped.model_json_schema())(payload) is None


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {},
        {"type": "unheard-of"},
        {"pattern": r"\p{L}+"},
        {"$ref": "#/$defs/Missing"},
        {"$ref": "elsewhere.json"},
        {"minimum": "1"},
        {"not": {"type": "object"}},
    ],
)
def test_what_is_not_understood_is_left_to_the_executor(schema: Any) -> None:
    assert compile_schema(schema)({"x": "1"}) is None


def test_endless_recursion_in_a_schema_ends() -> None:
    assert compile_schema({"$ref": "#"})({"x": 1}) is None


def test_deep_payload_of_a_recursive_type_does_not_exhaust_the_stack() -> None:
    payload: dict[str, Any] = {"value": 1}
    for _ in range(300):
        payload = {"value": 1, "children": [payload]}
    assert compile_schema(Tree.model_json_schema())(payload) is None
