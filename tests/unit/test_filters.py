"""Filters as callers give them, and which statement finds what they ask for."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dispatcher.errors import DispatcherError, InvalidOption, WrongState
from dispatcher.filters import Wanted, encode_filter, find_by


@pytest.mark.parametrize(
    ("given", "statement"),
    [
        ({}, "find_jobs"),
        ({"type": "t", "tenant": "x", "since": "2h"}, "find_jobs"),
        ({"state": "succeeded"}, "find_jobs"),
        ({"state": ["failed", "succeeded"]}, "find_jobs"),
        ({"state": ["pending", "running"]}, "find_jobs"),
        ({"state": "failed"}, "find_jobs"),
        ({"state": ["canceled", "partial"]}, "find_jobs"),
        ({"kind": "timeout"}, "find_jobs"),
        ({"kind": "timeout", "state": "scheduled"}, "find_scheduled_jobs"),
        ({"state": "running"}, "find_running_jobs"),
        ({"state": "pending"}, "find_pending_jobs"),
        ({"state": ["blocked", "blocked"]}, "find_blocked_jobs"),
        ({"state": "failed", "parent": 1}, "find_children"),
    ],
)
def test_jobs_are_found_without_a_look_at_all_where_that_is_possible(given: Any, statement: str) -> None:
    assert find_by(Wanted.make(**given)) == statement


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"state": "done"}, WrongState, "there is no state 'done'; the states are scheduled"),
        ({"state": []}, WrongState, "no state is given"),
        ({"since": datetime(2030, 1, 31, 12)}, InvalidOption, "since 2030-01-31T12:00:00 has no time zone"),  # noqa: DTZ001
        ({"until": "yesterday"}, InvalidOption, "until: 'yesterday' is no duration"),
        ({"since": -1}, InvalidOption, "since: -1 is no duration"),
        ({"type": ""}, InvalidOption, "type must be a text of 1 to 200 characters"),
        ({"tenant": "a\0b"}, InvalidOption, "tenant must be a text"),
    ],
)
def test_bad_value_is_one_line(given: Any, error: type[DispatcherError], told: str) -> None:
    with pytest.raises(error, match=told):
        Wanted.make(**given)


def test_filter_is_written_as_the_functions_take_it() -> None:
    since = datetime(2030, 1, 31, 12, tzinfo=UTC)
    text = encode_filter({"since": since, "until": timedelta(hours=1), "state": ("failed", "partial"), "kind": None})
    assert json.loads(text) == {"since": "2030-01-31T12:00:00+00:00", "until": 3600.0, "state": ["failed", "partial"]}
    with pytest.raises(InvalidOption, match="unknown filter 'states'; known filters: type, tenant, state"):
        encode_filter({"states": "failed"})
    with pytest.raises(InvalidOption, match="cannot be written as JSON: it has a NUL"):
        encode_filter({"message": "a\0b"})
