"""Many jobs in one call: all of them or none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dispatcher.db import Connection
from tests.db.running import job, value
from tests.db.serving import Served

NDJSON = {"Content-Type": "application/x-ndjson"}


def test_ten_thousand_jobs_in_one_call(api: Served, conn: Connection) -> None:
    jobs = [{"type": "quick", "payload": {"n": n}} for n in range(10_000)]
    answer = api.as_().post("/jobs:batch", json=jobs)
    assert answer.status_code == 202
    ids = answer.json()["ids"]
    assert answer.json()["created"] == len(set(ids)) == 10_000
    assert value(conn, "select count(*) from dispatcher.job") == 10_000
    assert job(conn, ids[4711])["payload"] == {"n": 4711}
    assert api.as_().post("/jobs:batch", json=[*jobs, {"type": "quick"}]).status_code == 422


def test_ids_come_in_the_order_of_the_jobs_whatever_they_have_in_common(api: Served, conn: Connection) -> None:
    jobs = [
        {"type": "slow" if n % 3 else "quick", "payload": {"n": n}, "priority": n % 2, "unique_key": f"k{n % 5}"}
        if n % 4
        else {"type": "quick", "payload": {"n": n}}
        for n in range(40)
    ]
    body = "\n".join(map(json.dumps, jobs)) + "\n\n"
    answer = api.as_().post("/jobs:batch", content=body, headers=NDJSON).json()
    first: dict[tuple[Any, Any], int] = {}
    for given, id in zip(jobs, answer["ids"], strict=True):
        row = job(conn, id)
        key = (given["type"], given.get("unique_key"))
        if key[1] is not None and key in first:
            assert id == first[key]
        else:
            first[key] = id
            assert (row["type"], row["payload"], row["priority"]) == (
                given["type"],
                given["payload"],
                given.get("priority", 0),
            )
    assert answer["created"] == value(conn, "select count(*) from dispatcher.job") == sum(answer["new"])
    again = api.as_().post("/jobs:batch", content=body, headers=NDJSON).json()
    assert again["new"] == ["unique_key" not in given for given in jobs]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"type": "unheard_of"}, "unknown job type"),
        ({"type": "quick", "priority": "x"}, "7.priority"),
        ({"type": "quick", "payload": {"nul": "\0"}}, "job 7"),
        ({"type": "quick", "payload": {"x": "y" * 2**20}}, "job 7"),
        ({"type": "quick", "delay": "soon"}, "7.delay"),
        ({"type": "quick", "after": [4711]}, "4711"),
        ({}, "7.type"),
    ],
)
def test_one_wrong_job_and_none_is_enqueued(api: Served, conn: Connection, wrong: dict[str, Any], words: str) -> None:
    jobs: list[dict[str, Any]] = [{"type": "quick"} for _ in range(10)]
    jobs[7] = wrong
    for answer in (
        api.as_().post("/jobs:batch", json=jobs),
        api.as_().post("/jobs:batch", content="\n".join(map(json.dumps, jobs)), headers=NDJSON),
    ):
        assert answer.status_code in (413, 422)
        assert words in answer.json()["detail"]
        assert value(conn, "select count(*) from dispatcher.job") == 0


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        ("[]", "application/json", 422),
        ("", "application/x-ndjson", 422),
        ("", "application/json", 400),
        ("{", "application/json", 400),
        ('{"type": "quick"}', "application/json", 422),
        ('{"type": "quick"}\n{"type"\n', "application/x-ndjson", 400),
        ('{"type": "quick"},{"type": "quick"}', "application/x-ndjson", 400),
        ("type=quick", "application/x-www-form-urlencoded", 415),
        ('[{"type": "quick"}]', "text/plain", 415),
    ],
)
def test_a_body_that_is_no_list_of_jobs_is_refused(
    api: Served, conn: Connection, content: str, kind: str, status: int
) -> None:
    answer = api.as_().post("/jobs:batch", content=content, headers={"Content-Type": kind})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert value(conn, "select count(*) from dispatcher.job") == 0
