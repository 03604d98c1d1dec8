"""The OpenAPI document is whole, and the page that shows it asks nobody else."""

from __future__ import annotations

import re
from typing import Any

from tests.db.serving import Served

METHODS = ("get", "post", "put", "patch", "delete")


def document(api: Served) -> dict[str, Any]:
    answer = api.caller().get("/openapi.json")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def test_each_operation_says_who_may_what_goes_wrong_and_how_it_looks(api: Served) -> None:
    whole = document(api)
    schemes = whole["components"]["securitySchemes"]
    assert [(scheme["type"], scheme["scheme"]) for scheme in schemes.values()] == [("http", "bearer")]
    for path, item in whole["paths"].items():
        for method in METHODS & item.keys():
            operation, where = item[method], f"{method} {path}"
            assert operation["security"] == [{name: []} for name in schemes], where
            assert operation["summary"], where
            assert operation["description"], where
            assert operation["tags"], where
            responses = operation["responses"]
            assert {"401", "422", "503"} <= responses.keys(), where
            for status, response in responses.items():
                assert response["description"], (where, status)
                if int(status) >= 400:
                    problem = response["content"]["application/problem+json"]
                    assert problem["schema"] == {"$ref": "#/components/schemas/Problem"}, (where, status)
                    assert problem["example"]["status"] == int(status), where
            assert "Retry-After" in responses["503"]["headers"], where
            if method == "post" and path != "/jobs/{id}/callback":  # whose first answer counts in any case
                names = [parameter["name"].lower() for parameter in operation["parameters"]]
                assert "idempotency-key" in names, where


def test_what_is_sent_has_examples(api: Served) -> None:
    whole = document(api)
    schemas = whole["components"]["schemas"]
    for path, item in whole["paths"].items():
        for media in item.get("post", {}).get("requestBody", {}).get("content", {}).values():
            schema = media["schema"]
            named = schema.get("$ref") or schema.get("items", {}).get("$ref")
            assert named, path
            assert "example" in media or schemas[named.rpartition("/")[2]]["examples"], path


def test_every_reference_leads_somewhere(api: Served) -> None:
    whole = document(api)
    for name in set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', str(whole).replace("'", '"'))):
        assert name in whole["components"]["schemas"]


def test_the_page_and_all_it_loads_come_from_here(api: Served) -> None:
    caller = api.caller()
    page = caller.get("/docs")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) >= 3
    for url in loaded:
        assert "//" not in url, url
        assert caller.get(f"/{url}").status_code == 200, url
    assert not re.search(r"https?://", page.text)
