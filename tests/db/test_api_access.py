"""Who may do what by HTTP: each route with each kind of token, and nothing of one tenant for another."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest

from dispatcher import Client
from dispatcher.db import Connection
from tests.db.running import enqueue, job, until, value
from tests.db.serving import Served

METHODS = ("get", "post", "put", "patch", "delete")
BODIES: dict[tuple[str, str], Any] = {
    ("post", "/jobs"): {"type": "quick"},
    ("post", "/jobs:batch"): [{"type": "quick"}],
    ("post", "/batches"): {"type": "quick", "payloads": [{}]},
    ("post", "/types/{type}/limit"): {"limit": 3},
    ("post", "/schedules"): {"name": "new", "cron": "0 3 * * *", "type": "quick"},
    ("post", "/jobs/{id}/callback"): {"status": "succeeded"},
}
# Its tokens are each job's own: any other is as good as a job that is nowhere, for which there is 404.
CALLBACK = ("post", "/jobs/{id}/callback")
WRITE = {
    ("post", path)
    for path in (
        "/jobs",
        "/jobs:batch",
        "/batches",
        "/jobs/{id}/cancel",
        "/jobs/{id}/retry",
        "/schedules/{name}/trigger",
    )
}
ADMIN = {
    ("post", "/schedules"),
    ("delete", "/schedules/{name}"),
    *(("post", f"/schedules/{{name}}/{verb}") for verb in ("pause", "resume")),
}
FLEET = {("get", "/replicas"), ("get", "/leader")}
OPERATE = {("post", f"/types/{{type}}/{verb}") for verb in ("pause", "resume", "limit")}
OWNED = ("/jobs/{id}", "/batches/{id}", "/schedules/{name}")


def operations(api: Served) -> list[tuple[str, str]]:
    """Every route of the OpenAPI document."""
    paths = api.caller().get("/openapi.json").json()["paths"]
    return [(method, path) for path, item in paths.items() for method in item if method in METHODS]


class Things:
    """A tenant's job, batch and schedule."""

    def __init__(self, api: Served, conn: Connection, tenant: str) -> None:
        self.job = enqueue(conn, tenant=tenant)
        admin = api.as_("admin", tenant)
        self.batch = admin.post("/batches", json={"type": "quick", "payloads": [{}]}).json()["id"]
        schedule = {"name": "nightly", "cron": "0 3 * * *", "type": "quick", "unique_key": "k"}
        assert admin.post("/schedules", json=schedule).status_code == 200

    def path(self, path: str) -> str:
        """A route's path with them in it."""
        id = self.batch if path.startswith("/batches") else self.job
        return path.replace("{id}", str(id)).replace("{name}", "nightly").replace("{type}", "quick")


def send(caller: httpx.Client, method: str, path: str, things: Things) -> httpx.Response:
    params = {"wait": "1ms"} if path == "/jobs/{id}" else {}
    with caller.stream(method, things.path(path), params=params, json=BODIES.get((method, path))) as answer:
        if not path.endswith("/events"):
            answer.read()
        return answer


def test_no_route_answers_without_a_token_that_counts(api: Served, conn: Connection) -> None:
    things = Things(api, conn, "acme")
    with Client(api.dsn) as client:
        id, revoked = client.create_token("old", role="admin")
        assert client.revoke_token(id)
        assert not client.revoke_token(id)
    expired = api.token(role="admin", expires=0.001)
    unknown = revoked[:-1] + ("a" if revoked[-1] != "a" else "b")
    found = operations(api)
    assert len(found) > 20
    for token in (None, "x", "garbage", unknown, revoked, expired):
        caller = api.caller(token)
        for method, path in found:
            answer = send(caller, method, path, things)
            if token is not None and (method, path) == CALLBACK:
                assert answer.status_code == 404, token
                continue
            assert answer.status_code == 401, (token, method, path)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert answer.headers["content-type"] == "application/problem+json"
    assert api.caller().get("/jobs", headers={"Authorization": "Basic dTpw"}).status_code == 401
    assert value(conn, "select count(*) from dispatcher.job where tenant = ''") == 0


@pytest.mark.parametrize("role", ["read", "write", "admin"])
@pytest.mark.parametrize("tenant", [None, "acme"])
def test_a_role_may_do_what_it_says_and_no_more(api: Served, conn: Connection, role: str, tenant: str | None) -> None:
    caller = api.as_(role, tenant)
    for method, path in operations(api):
        route = (method, path)
        things = Things(api, conn, "acme")
        if tenant is None and "{name}" in path:
            stored = value(conn, "select name from dispatcher.schedule")
            things.path = lambda path, stored=stored: path.replace("{name}", stored)  # type: ignore[method-assign,misc]
        allowed = not (
            (route in WRITE and role == "read")
            or (route in ADMIN and role != "admin")
            or (route in OPERATE and (role != "admin" or tenant is not None))
            or (route in FLEET and tenant is not None)
        )
        status = send(caller, method, path, things).status_code
        assert (status != 403) == allowed, (method, path, status)
        assert status not in (401, 422, 500), (method, path, status)


def test_what_is_anothers_does_not_exist(api: Served, conn: Connection) -> None:
    """The answer for another tenant's thing is, byte for byte, that for one which is nowhere."""
    things = Things(api, conn, "acme")
    stranger = api.as_("admin", "other")
    for method, path in operations(api):
        if not path.startswith(OWNED):
            continue
        answer = send(stranger, method, path, things)
        assert answer.status_code == 404, (method, path)
        missing = things.path(path)
        nowhere = missing.replace(f"/{things.job}", "/4711").replace(f"/{things.batch}", "/4711")
        nowhere = nowhere.replace("nightly", "never")
        other = stranger.request(method, nowhere, json=BODIES.get((method, path)))
        with stranger.stream(method, missing, json=BODIES.get((method, path))) as again:
            text = again.read().decode()
        for mine, theirs in ((str(things.job), "4711"), (str(things.batch), "4711"), ("nightly", "never")):
            text = text.replace(mine, theirs)
        assert (other.status_code, other.text) == (404, text), (method, path)
    conn.execute(
        "insert into dispatcher.tally (grain, at, type, tenant, succeeded)"
        " select 'minute', date_trunc('minute', now()), 'quick', t, 1 from unnest(array['', 'acme']) t"
    )
    assert stranger.get("/stats").json() == {"types": []} == stranger.get("/stats", params={"tenant": "acme"}).json()
    [own] = api.as_("read", "acme").get("/stats").json()["types"]
    assert (own["type"], own["minute"]["succeeded"], own["minute"]["finished"], own["hour"]["failed"]) == (
        "quick",
        1,
        1,
        0,
    )
    assert own == api.as_("read").get("/stats", params={"tenant": "acme"}).json()["types"][0]
    assert stranger.get("/jobs").json() == {"jobs": [], "next": None}
    assert stranger.get("/jobs", params={"tenant": "acme"}).json() == {"jobs": [], "next": None}
    assert stranger.get("/jobs", params={"parent": things.batch}).json()["jobs"] == []
    assert stranger.get("/schedules").json() == {"schedules": []}
    counts = {one["name"]: one["counts"] for one in stranger.get("/types").json()["types"]}
    assert counts == {"quick": {}, "slow": {}}


def test_a_tenant_cannot_reach_into_another(api: Served, conn: Connection) -> None:
    things = Things(api, conn, "acme")
    stranger = api.as_("admin", "other")
    for body in ({"after": [things.job]}, {"parent": things.batch}):
        refused = stranger.post("/jobs", json={"type": "quick", **body})
        assert refused.status_code == 422
        nowhere = stranger.post(
            "/jobs", json={"type": "quick", **{name: [4711] if name == "after" else 4711 for name in body}}
        )
        text = refused.json()["detail"].replace(str(things.job), "4711").replace(str(things.batch), "4711")
        assert nowhere.json()["detail"] == text
        assert stranger.post("/jobs:batch", json=[{"type": "quick", **body}]).status_code == 422
    assert stranger.post("/batches", json={"type": "quick", "payloads": [{}], "after": [things.job]}).status_code == 422
    for route, body in BODIES.items():
        if route[1] in ("/jobs", "/batches", "/schedules"):
            assert stranger.post(route[1], json={**body, "tenant": "acme"}).status_code == 403
    assert stranger.post("/jobs:batch", json=[{"type": "quick", "tenant": "acme"}]).status_code == 403


def test_what_a_tenant_enqueues_is_its_own(api: Served, conn: Connection) -> None:
    caller = api.as_("write", "acme")
    id = caller.post("/jobs", json={"type": "quick"}).json()["id"]
    [other] = caller.post("/jobs:batch", json=[{"type": "quick"}]).json()["ids"]
    batch = caller.post("/batches", json={"type": "quick", "payloads": [{}]}).json()["id"]
    assert {job(conn, one)["tenant"] for one in (id, other, batch)} == {"acme"}
    child = caller.post("/jobs", json={"type": "quick", "parent": batch}).json()["id"]
    assert job(conn, child)["tenant"] == "acme"


def test_unique_keys_of_tenants_do_not_meet(api: Served, conn: Connection) -> None:
    """Neither can notice the other's, however tenants and keys are written; each is shown its key as it gave it."""
    seen: dict[int, tuple[str, str]] = {}
    for tenant, key in (("a", "b:c"), ("a:b", "c"), ("2", "1:k"), ("2:1", "k"), ("é", "k"), ("a", "2:a:b")):
        caller = api.as_("write", tenant)
        made = caller.post("/jobs", json={"type": "quick", "unique_key": key})
        assert (made.status_code, made.json()["id"] in seen) == (202, False)
        id = made.json()["id"]
        seen[id] = (tenant, key)
        assert caller.get(f"/jobs/{id}").json()["unique_key"] == key
        assert caller.post("/jobs", json={"type": "quick", "unique_key": key}).json()["id"] == id
        [again] = caller.post("/jobs:batch", json=[{"type": "quick", "unique_key": key}]).json()["ids"]
        assert again == id
    everybody = api.as_("write")
    assert everybody.post("/jobs", json={"type": "quick", "unique_key": "c"}).json()["id"] not in seen
    for id in seen:  # who sees all tenants sees what is stored
        stored = value(conn, "select unique_key from dispatcher.job where id = %s", id)
        assert everybody.get(f"/jobs/{id}").json()["unique_key"] == stored


def test_schedules_of_tenants_have_names_of_their_own(api: Served, conn: Connection) -> None:
    body = {"name": "nightly", "cron": "0 3 * * *", "type": "quick"}
    for tenant in ("acme", "other", "a/b", "a.2f.b", "ä ö"):
        caller = api.as_("admin", tenant)
        assert caller.post("/schedules", json=body).status_code == 200
        assert [one["name"] for one in caller.get("/schedules").json()["schedules"]] == ["nightly"]
        assert caller.post("/schedules/nightly/pause").json() == {"paused": True, "changed": True}
        id = caller.post("/schedules/nightly/trigger").json()["id"]
        assert job(conn, id)["tenant"] == tenant
    assert value(conn, "select count(*) from dispatcher.schedule") == 5
    assert api.as_("admin", "acme").delete("/schedules/nightly").status_code == 204
    assert value(conn, "select count(*) from dispatcher.schedule") == 4
    assert len(api.as_("read").get("/schedules").json()["schedules"]) == 4


def test_an_explanation_tells_a_tenant_nothing_of_others(api: Served, conn: Connection) -> None:
    conn.execute("select dispatcher.set_limit('quick', '{\"limit\": 1}')")
    others = enqueue(conn, tenant="other")
    conn.execute("update dispatcher.job set state = 'running', owner = 7 where id = %s", [others])
    conn.execute("insert into dispatcher.claim (owner, term, job_ids) values (7, 1, array[%s::bigint])", [others])
    id = enqueue(conn, tenant="acme")
    found = api.as_("read", "acme").get(f"/jobs/{id}/explain").json()
    assert "limit" in {reason["kind"] for reason in found["reasons"]}
    for reason in found["reasons"]:
        assert set(reason["details"]) <= {"since", "attempt"}
    assert "by" in api.as_("read").get(f"/jobs/{id}/explain").json()["reasons"][-1]["details"]


def test_a_token_is_void_within_a_second_of_being_revoked(api: Served, conn: Connection) -> None:
    with Client(api.dsn) as client:
        id, token = client.create_token("leaver")
        caller = api.caller(token)
        assert caller.get("/jobs").status_code == 200
        client.revoke_token(id)
    until(lambda: caller.get("/jobs").status_code == 401, within_s=5.0)
    assert "revoked" in caller.get("/jobs").json()["detail"]


def test_a_token_stands_nowhere_and_its_use_is_noted(
    api: Served, conn: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token = api.token(role="admin")
    secret = token.removeprefix("djt_")
    caller = api.caller(token)
    caller.get("/jobs")
    caller.get("/jobs", params={"limit": "x"})
    until(lambda: value(conn, "select used_at is not null from dispatcher.tokens order by id desc limit 1"))
    assert secret not in str(conn.execute("select t::text from dispatcher.token t").fetchall())
    assert secret not in caplog.text


def test_what_an_admin_does_is_on_record(api: Served, conn: Connection) -> None:
    admin = api.as_("admin")
    admin.post("/types/quick/pause")
    admin.post("/types/quick/resume")
    admin.post("/types/quick/limit", json={"limit": 2, "rate": "10/min"})
    admin.post("/schedules", json={"name": "x", "cron": "* * * * *", "type": "quick"})
    admin.delete("/schedules/x")
    admin.post("/types/unheard_of/pause")  # nothing done, nothing on record
    rows = conn.execute(
        "select action, target, token_name, address, details from dispatcher.audit order by id"
    ).fetchall()
    assert [row[:2] for row in rows] == [
        ("type.pause", "quick"),
        ("type.resume", "quick"),
        ("type.limit", "quick"),
        ("schedule.add", "x"),
        ("schedule.remove", "x"),
    ]
    assert {row[2:4] for row in rows} == {("test", "127.0.0.1")}
    assert rows[2][4] == {"limit": 2, "rate": "10/min"}


def test_types_are_controlled(api: Served, conn: Connection) -> None:
    admin = api.as_("admin")
    assert admin.post("/types/quick/pause").json() == {"paused": True, "changed": True}
    assert admin.post("/types/quick/pause").json() == {"paused": True, "changed": False}
    assert admin.get("/types/quick").json()["paused_at"] is not None
    assert admin.post("/types/quick/resume").json() == {"paused": False, "changed": True}
    shown = admin.post("/types/quick/limit", json={"limit": 5, "burst": 2, "rate": 2}).json()
    assert (shown["limit"], shown["limit_from"], shown["rate"], shown["burst"]) == (5, "database", 2.0, 2)
    admin.post("/types/quick/limit", json={"limit": 1, "tenant": "acme"})
    assert admin.get("/types/quick").json()["tenant_limits"] == {"acme": 1}
    assert api.as_("read", "other").get("/types/quick").json()["tenant_limits"] == {}
    assert admin.post("/types/quick/limit", json={"limit": None}).json()["limit"] is None
    for wrong in ({"limit": 0}, {"rate": "fast"}, {"unknown": 1}, {"rate": 1, "tenant": "acme"}):
        assert admin.post("/types/quick/limit", json=wrong).status_code == 422
    for verb in ("pause", "resume", "limit"):
        assert admin.post(f"/types/unheard_of/{verb}", json={"limit": 1}).status_code == 404
    assert admin.get("/types/unheard_of").status_code == 404
    enqueue(conn)
    assert admin.get("/types").json()["types"][0]["counts"] == {"pending": 1}
