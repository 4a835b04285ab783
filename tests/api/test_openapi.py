"""The OpenAPI document: complete, sound, and changed only on purpose. `scripts/check-openapi-client.sh` compiles it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bloxserver.api.main import app
from bloxserver.api.schemas import ApiError

OPERATIONS = """
DELETE /api/v1/flows/{flow_id} deleteFlow 204 401 404 422 503
DELETE /api/v1/flows/{flow_id}/triggers/{trigger_id} deleteTrigger 204 401 404 422 503
DELETE /api/v1/secrets/{name} deleteSecret 204 401 404 422 503
GET / getServiceInfo 200
GET /api/v1/blocks listBlocks 200 401 422 503
GET /api/v1/flows listFlows 200 401 422 503
GET /api/v1/flows/{flow_id} getFlow 200 401 404 422 503
GET /api/v1/flows/{flow_id}/canvas getFlowCanvas 200 401 404 422 503
GET /api/v1/flows/{flow_id}/executions listExecutions 200 401 404 422 503
GET /api/v1/flows/{flow_id}/executions/stats getFlowStats 200 401 404 422 503
GET /api/v1/flows/{flow_id}/executions/{execution_id} getExecution 200 401 404 422 503
GET /api/v1/flows/{flow_id}/executions/{execution_id}/events streamExecution 200 204 401 404 422 503
GET /api/v1/flows/{flow_id}/executions/{execution_id}/steps listSteps 200 401 404 422 503
GET /api/v1/flows/{flow_id}/triggers listTriggers 200 401 404 422 503
GET /api/v1/flows/{flow_id}/triggers/{trigger_id} getTrigger 200 401 404 422 503
GET /api/v1/flows/{flow_id}/triggers/{trigger_id}/upcoming listUpcomingFirings 200 400 401 404 422 503
GET /api/v1/flows/{flow_id}/versions listFlowVersions 200 401 404 422 503
GET /api/v1/flows/{flow_id}/versions/{number} getFlowVersion 200 401 404 422 503
GET /api/v1/me getCurrentUser 200 401 422 503
GET /api/v1/secrets listSecrets 200 401 422 503
GET /api/v1/usage getUsage 200 401 422 503
GET /health getHealth 200
GET /health/live getLiveness 200
GET /health/ready getReadiness 200 503
GET /webhooks/{webhook_token}/test testWebhook 200 404 422 503
PATCH /api/v1/flows/{flow_id} updateFlow 200 401 404 408 413 422 503
PATCH /api/v1/flows/{flow_id}/triggers/{trigger_id} updateTrigger 200 401 404 408 413 422 503
POST /api/v1/flows createFlow 201 401 403 408 413 422 503
POST /api/v1/flows/{flow_id}/canvas/derive deriveOrganism 200 401 404 408 413 422 503
POST /api/v1/flows/{flow_id}/executions/run runFlow 201 202 400 401 403 404 408 413 422 503
POST /api/v1/flows/{flow_id}/executions/{execution_id}/cancel cancelExecution 200 400 401 404 422 503
POST /api/v1/flows/{flow_id}/executions/{execution_id}/retry retryExecution 201 400 401 403 404 422 503
POST /api/v1/flows/{flow_id}/start startFlow 200 400 401 404 422 503
POST /api/v1/flows/{flow_id}/stop stopFlow 200 400 401 404 422 503
POST /api/v1/flows/{flow_id}/triggers createTrigger 201 401 404 408 413 422 503
POST /api/v1/flows/{flow_id}/triggers/{trigger_id}/regenerate-token regenerateTriggerToken 200 400 401 404 422 503
POST /api/v1/flows/{flow_id}/validate validateFlow 200 401 404 408 413 422 503
POST /api/v1/flows/{flow_id}/versions/{number}/restore restoreFlowVersion 200 401 404 422 503
POST /api/v1/organisms/validate validateOrganism 200 401 408 413 422 503
POST /api/v1/secrets createSecret 201 401 403 408 409 413 422 503
POST /webhooks/{webhook_token} receiveWebhook 200 202 400 403 404 408 409 413 422 503
PUT /api/v1/secrets/{name} setSecret 200 401 403 408 413 422 503
""".strip()

NOT_YET_OR_NO_MORE = {"202", "204"}
"""What an operation may answer beside its success: it goes on, or there is no more to come."""
WITHOUT_BODY = ("/start", "/stop", "/regenerate-token", "/cancel", "/retry", "/restore")
METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}
DOCUMENT = app.openapi()
ALL = [
    pytest.param(method, path, operation, id=operation.get("operationId", path))
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
]


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in the document."""
    if isinstance(value, dict):
        yield value
        for child in value.values():
            yield from nodes(child)
    elif isinstance(value, list):
        for child in value:
            yield from nodes(child)


def resolved(reference: str) -> Any:
    target: Any = DOCUMENT
    assert reference.startswith("#/"), reference
    for part in reference.removeprefix("#/").split("/"):
        target = target[part.replace("~1", "/").replace("~0", "~")]
    return target


def test_the_operations_are_those_that_are_known() -> None:
    """A route is added, or its answers change, with this list."""
    lines = [
        " ".join([method.upper(), path, operation["operationId"], *operation["responses"]])
        for path, item in DOCUMENT["paths"].items()
        for method, operation in item.items()
    ]
    assert sorted(lines) == OPERATIONS.splitlines()


def test_operation_ids_are_unique_and_in_camel_case() -> None:
    ids = [operation["operationId"] for item in DOCUMENT["paths"].values() for operation in item.values()]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[a-z]+([A-Z][a-z]+)+", one) for one in ids)


@pytest.mark.parametrize(("method", "path", "operation"), ALL)
class TestOperation:
    def test_is_described(self, method: str, path: str, operation: dict[str, Any]) -> None:
        assert method in METHODS
        assert operation["summary"]
        assert re.fullmatch(r"[A-Z].*\.", operation["description"], re.DOTALL)
        (tag,) = operation["tags"]
        assert tag in {"flows", "triggers", "executions", "users", "webhooks", "health", "secrets", "organisms"}
        successes = [status for status in operation["responses"] if status.startswith("2")]
        assert len(successes) == 1 or set(successes[1:]) <= NOT_YET_OR_NO_MORE
        for parameter in operation.get("parameters", []):
            assert parameter["description"], parameter["name"]

    def test_names_the_parameters_of_its_path(self, method: str, path: str, operation: dict[str, Any]) -> None:
        given = [one for one in operation.get("parameters", []) if one["in"] == "path"]
        assert [one["name"] for one in given] == re.findall(r"{(\w+)}", path)
        assert all(one["required"] for one in given)
        names = [(one["in"], one["name"]) for one in operation.get("parameters", [])]
        assert len(set(names)) == len(names)
        assert all(one["schema"].get("format") == "uuid" for one in given if one["name"].endswith("_id"))

    def test_answers_with_problems(self, method: str, path: str, operation: dict[str, Any]) -> None:
        responses = operation["responses"]
        assert ("401" in responses) == path.startswith("/api/v1/")
        assert ("security" in operation) == path.startswith("/api/v1/")
        assert "404" in responses or "_id}" not in path
        for status, response in responses.items():
            assert response["description"]
            if status.startswith("2") or path == "/health/ready":
                continue
            ((media_type, content),) = response["content"].items()
            assert media_type == "application/problem+json"
            assert content["schema"] == {"$ref": "#/components/schemas/ApiError"}
            example = ApiError.model_validate(content["example"])
            assert str(example.status) == status
            assert example.detail == example.message
            assert re.fullmatch("[a-z_]+", example.code)

    def test_answers_success_as_described(self, method: str, path: str, operation: dict[str, Any]) -> None:
        for status, response in operation["responses"].items():
            if status == "204":
                assert method == "delete" or path.endswith("/events")
                assert "content" not in response
            elif status.startswith("2") and path.endswith("/events"):
                assert set(response["content"]) == {"text/event-stream"}
            elif status.startswith("2"):
                schema = response["content"]["application/json"]["schema"]
                assert all("$ref" in one for one in schema.get("anyOf", [schema.get("items", schema)]))

    def test_shows_an_example_of_its_body(self, method: str, path: str, operation: dict[str, Any]) -> None:
        body = operation.get("requestBody")
        if body is None:
            assert method in ("get", "delete") or path.endswith(WITHOUT_BODY)
            return
        contents = json.dumps(body["content"])
        references = re.findall('"(#/components/schemas/[^"]+)"', contents)
        assert "example" in contents or any("examples" in json.dumps(resolved(one)) for one in references)


def test_the_document_is_sound() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert DOCUMENT["info"]["title"] == "BloxServer API"
    assert DOCUMENT["info"]["version"]
    assert DOCUMENT["info"]["description"]
    assert json.loads(json.dumps(DOCUMENT, allow_nan=False)) == DOCUMENT
    references = {node["$ref"] for node in nodes(DOCUMENT) if isinstance(node.get("$ref"), str)}
    assert all(resolved(reference) for reference in references)
    schemas = DOCUMENT["components"]["schemas"]
    assert {f"#/components/schemas/{name}" for name in schemas} == references, "no schema is left over"
    assert DOCUMENT["components"]["securitySchemes"]["clerk"]["scheme"] == "bearer"


@pytest.mark.parametrize("name", DOCUMENT["components"]["schemas"])
def test_a_schema_is_in_camel_case_and_requires_what_it_has(name: str) -> None:
    schema = DOCUMENT["components"]["schemas"][name]
    assert schema["type"] in ("object", "string")
    properties = schema.get("properties", {})
    assert all(re.fullmatch("[a-z][a-zA-Z]*", one) for one in properties)
    assert set(schema.get("required", [])) <= set(properties)
    assert all(set(one) & {"type", "$ref", "anyOf", "title", "allOf"} for one in properties.values())
    assert all(node["enum"] for node in nodes(schema) if "enum" in node)
    answers = {"Flow", "FlowSummary", "Trigger", "Execution", "ExecutionSummary", "FlowStats", "User", "UsageDashboard"}
    answers |= {"AwaitedExecution", "Step", "FlowVersion", "FlowVersionSummary"}
    if name in answers:
        assert set(schema["required"]) == set(properties), "a member of an answer is always there"


async def test_the_document_is_served_with_its_pages(client: httpx.AsyncClient) -> None:
    assert (await client.get("/openapi.json")).json() == json.loads(json.dumps(DOCUMENT))
    for page in ("/docs", "/redoc"):
        response = await client.get(page)
        assert response.status_code == 200
        assert "text/html" in response.headers["Content-Type"]
        assert "/openapi.json" in response.text


def test_the_client_check_names_no_registry() -> None:
    """What it installs comes from wherever npm is set to look, and is checked by its hash."""
    folder = Path(__file__).parents[1] / "openapi_client"
    lock = json.loads((folder / "package-lock.json").read_text())
    packages = {path: package for path, package in lock["packages"].items() if path}
    assert packages
    assert all("resolved" not in package and package["integrity"] for package in packages.values())
    pinned = json.loads((folder / "package.json").read_text())["devDependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in pinned.values())
