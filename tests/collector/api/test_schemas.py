"""The OpenAPI description: enough for a client to be generated from it, and true of what the service answers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from models.store import Store
from tests import factories as make
from tests.collector.api.serving import Service, serving

AN_HOUR_AGO = make.NOW - timedelta(hours=1)


@pytest.fixture
def service(sqlite_store: Store) -> Iterator[Service]:
    with sqlite_store.write() as session:
        make.serverless(session)
        make.token_prices(session, "1.00", "2.00")
        make.event(session, make.series(session, team="search"), time=AN_HOUR_AGO)
        make.event(session, make.series(session, deployment="unpriced", model="no-such-model"), time=AN_HOUR_AGO)
    with serving(sqlite_store) as found:
        yield found


def operations(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for one in part.values():
            yield from references(one)
    elif isinstance(part, list):
        for one in part:
            yield from references(one)


def test_every_route_has_a_name_words_parameters_and_an_error(service: Service) -> None:
    schema = service.client.get("/openapi.json").json()
    assert schema["openapi"].startswith("3.1")
    every = dict(operations(schema))
    names = [operation["operationId"] for operation in every.values()]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)
    for where, operation in every.items():
        assert operation.get("summary"), where
        assert operation["responses"]["default"]["content"]["application/problem+json"]["schema"] == {"$ref": "#/components/schemas/Problem"}, where
        assert any(status.startswith("2") for status in operation["responses"]), where
        said = [(one["in"], one["name"]) for one in operation.get("parameters", ())]
        assert len(set(said)) == len(said), where
        assert all(one.get("schema") for one in operation.get("parameters", ())), where
        in_path = {name for place, name in said if place == "path"}
        assert in_path == {part[1:-1].partition(":")[0] for part in where.split("/") if part.startswith("{")}, where
    for reference in references(schema):
        assert reference.rpartition("/")[2] in schema["components"]["schemas"], reference
    for one in schema["components"]["schemas"].values():
        Draft202012Validator.check_schema(one)


def test_answers_are_as_described(service: Service) -> None:
    schema = service.client.get("/openapi.json").json()

    def check(name: str, answer: Any) -> None:
        Draft202012Validator({**schema["components"]["schemas"][name], "components": schema["components"]}).validate(answer)

    answers = [
        service.client.get("/v1/costs", params=said).json()
        for said in ({}, {"group_by": "team,deployment", "granularity": "hour"}, {"from": "2020-01-01", "to": "2020-01-02"}, {"as_of": "2026-11-20T09:00:00Z"})
    ]
    for answer in answers:
        check("Costs", answer)
        assert answer.keys() == schema["components"]["schemas"]["Costs"]["properties"].keys()
    assert [len(answer["rows"]) for answer in answers[:3]] == [2, 2, 0]  # by currency, of which what has no price has none
    for refused in ({"basis": "guessed"}, {"limit": "0"}, {"nothing": "x"}):
        found = service.client.get("/v1/costs", params=refused)
        assert found.headers["content-type"] == "application/problem+json"
        check("Problem", found.json())


def test_files_are_named_with_their_forms(service: Service) -> None:
    schema = service.client.get("/openapi.json").json()
    for path, form, media_type in (
        ("/v1/costs", "csv", "text/csv"),
        ("/v1/costs", "parquet", "application/vnd.apache.parquet"),
        ("/v1/usage", "csv", "text/csv"),
        ("/v1/reports/weekly", "pdf", "application/pdf"),
        ("/v1/reports/weekly", "html", "text/html"),
    ):
        answer = service.client.get(path, params={"format": form})
        assert answer.status_code == 200
        assert answer.headers["content-type"].partition(";")[0] == media_type
        described = schema["paths"][path]["get"]["responses"]["200"]
        assert media_type in described["content"]
        assert ("x-control-total" in answer.headers) == ("X-Control-Total" in described["headers"])
