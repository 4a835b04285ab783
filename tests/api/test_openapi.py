"""The OpenAPI document. `scripts/check-openapi-client.sh` compiles a client from it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from bloxserver.api import examples, schemas
from bloxserver.api.main import app
from bloxserver.api.schemas import ApiError
from bloxserver.blocks.registry import get_registry
from bloxserver.organism.canvas import yaml_to_canvas
from bloxserver.organism.parse import parse
from tests.api.sse import parse_events, validated

OPERATIONS = """
DELETE /api/v1/api-keys/{key_id} revokeApiKey 204 401 403 404 422 429 503
DELETE /api/v1/flows/{flow_id} deleteFlow 204 401 403 404 422 429 503
DELETE /api/v1/flows/{flow_id}/triggers/{trigger_id} deleteTrigger 204 401 403 404 422 429 503
DELETE /api/v1/flows/{flow_id}/triggers/{trigger_id}/signing-secrets/{secret_id} deleteSigningSecret 204 401 403 404 422 429 503
DELETE /api/v1/llm/keys/{provider} deleteLlmKey 204 401 403 404 422 429 503
DELETE /api/v1/me deleteCurrentUser 204 401 403 422 429 503
DELETE /api/v1/secrets/{name} deleteSecret 204 401 403 404 422 429 503
GET / getServiceInfo 200 429
GET /api/v1/api-keys listApiKeys 200 401 403 422 429 503
GET /api/v1/audit listAuditEvents 200 400 401 403 422 429 503
GET /api/v1/billing getBilling 200 401 403 404 422 429 503
GET /api/v1/blocks listBlocks 200 401 403 422 429 503
GET /api/v1/executions listAllExecutions 200 400 401 403 422 429 503
GET /api/v1/flows listFlows 200 401 403 422 429 503
GET /api/v1/flows/{flow_id} getFlow 200 401 403 404 422 429 503
GET /api/v1/flows/{flow_id}/canvas getFlowCanvas 200 401 403 404 422 429 503
GET /api/v1/flows/{flow_id}/executions listExecutions 200 400 401 403 404 422 429 503
GET /api/v1/flows/{flow_id}/executions/stats getFlowStats 200 401 403 404 422 429 503
GET /api/v1/flows/{flow_id}/executions/stats/series getFlowStatsSeries 200 401 403 404 422 429 503
GET /api/v1/flows/{flow_id}/executions/{execution_id} getExecution 200 401 403 404 422 429 503
GET /api/v1/flows/{flow_id}/executions/{execution_id}/events streamExecution 200 204 401 403 404 422 429 503
GET /api/v1/flows/{flow_id}/executions/{execution_id}/steps listSteps 200 401 403 404 422 429 503
GET /api/v1/flows/{flow_id}/triggers listTriggers 200 401 403 404 422 429 503
GET /api/v1/flows/{flow_id}/triggers/{trigger_id} getTrigger 200 401 403 404 422 429 503
GET /api/v1/flows/{flow_id}/triggers/{trigger_id}/deliveries listDeliveries 200 401 403 404 422 429 503
GET /api/v1/flows/{flow_id}/triggers/{trigger_id}/signing-secrets listSigningSecrets 200 401 403 404 422 429 503
GET /api/v1/flows/{flow_id}/triggers/{trigger_id}/upcoming listUpcomingFirings 200 400 401 403 404 422 429 503
GET /api/v1/flows/{flow_id}/vars getFlowVars 200 401 403 404 422 429 503
GET /api/v1/flows/{flow_id}/versions listFlowVersions 200 401 403 404 422 429 503
GET /api/v1/flows/{flow_id}/versions/{number} getFlowVersion 200 401 403 404 422 429 503
GET /api/v1/llm/keys listLlmKeys 200 401 403 422 429 503
GET /api/v1/llm/usage getLlmUsage 200 401 403 422 429 503
GET /api/v1/me getCurrentUser 200 401 403 422 429 503
GET /api/v1/me/export exportCurrentUser 200 401 403 422 429 503
GET /api/v1/secrets listSecrets 200 401 403 422 429 503
GET /api/v1/usage getUsage 200 401 403 422 429 503
GET /api/v1/usage/flows listFlowUsage 200 400 401 403 422 429 503
GET /api/v1/usage/history getUsageHistory 200 401 403 422 429 503
GET /health getHealth 200
GET /health/live getLiveness 200
GET /health/ready getReadiness 200 503
GET /resume/{resume_token} showQuestion 200 404 409 422 429 503
GET /v1/models listLanguageModels 200 401 403 422 429 503
GET /webhooks/{webhook_token}/test testWebhook 200 404 422 429 503
PATCH /api/v1/flows/{flow_id} updateFlow 200 401 403 404 408 412 413 422 429 503
PATCH /api/v1/flows/{flow_id}/triggers/{trigger_id} updateTrigger 200 401 403 404 408 413 422 429 503
POST /api/v1/api-keys createApiKey 201 401 403 404 408 413 422 429 503
POST /api/v1/billing/checkout startCheckout 200 401 403 404 408 409 413 422 429 503
POST /api/v1/billing/portal openBillingPortal 200 401 403 404 409 422 429 503
POST /api/v1/flows createFlow 201 401 403 408 413 422 429 503
POST /api/v1/flows/{flow_id}/canvas/derive deriveOrganism 200 401 403 404 408 413 422 429 503
POST /api/v1/flows/{flow_id}/estimate estimateFlow 200 400 401 403 404 422 429 503
POST /api/v1/flows/{flow_id}/executions/run runFlow 201 202 400 401 403 404 408 413 422 429 503
POST /api/v1/flows/{flow_id}/executions/{execution_id}/cancel cancelExecution 200 400 401 403 404 422 429 503
POST /api/v1/flows/{flow_id}/executions/{execution_id}/retry retryExecution 201 400 401 403 404 422 429 503
POST /api/v1/flows/{flow_id}/start startFlow 200 400 401 403 404 422 429 503
POST /api/v1/flows/{flow_id}/stop stopFlow 200 400 401 403 404 422 429 503
POST /api/v1/flows/{flow_id}/triggers createTrigger 201 401 403 404 408 413 422 429 503
POST /api/v1/flows/{flow_id}/triggers/{trigger_id}/deliveries/{delivery_id}/redeliver redeliverWebhook 201 400 401 403 404 409 422 429 503
POST /api/v1/flows/{flow_id}/triggers/{trigger_id}/regenerate-token regenerateTriggerToken 200 400 401 403 404 422 429 503
POST /api/v1/flows/{flow_id}/triggers/{trigger_id}/signing-secrets createSigningSecret 201 400 401 403 404 408 409 413 422 429 503
POST /api/v1/flows/{flow_id}/validate validateFlow 200 401 403 404 408 413 422 429 503
POST /api/v1/flows/{flow_id}/versions/{number}/restore restoreFlowVersion 200 401 403 404 422 429 503
POST /api/v1/llm/keys addLlmKey 201 400 401 403 408 413 422 429 503
POST /api/v1/organisms/validate validateOrganism 200 401 403 408 413 422 429 503
POST /api/v1/secrets createSecret 201 401 403 408 409 413 422 429 503
POST /resume/{resume_token} answerQuestion 200 404 408 409 413 422 429 503
POST /v1/chat/completions createChatCompletion 200 400 401 403 404 408 413 422 429 502 503 504
POST /v1/embeddings createEmbeddings 200 400 401 403 404 408 413 422 429 502 503 504
POST /webhooks/clerk receiveClerkEvent 200 400 404 408 413 422 429 503
POST /webhooks/stripe receiveStripeEvent 200 400 404 408 413 429 503
POST /webhooks/{webhook_token} receiveWebhook 200 202 400 401 403 404 408 409 413 422 429 503
PUT /api/v1/flows/{flow_id}/vars setFlowVars 200 400 401 403 404 408 413 422 429 503
PUT /api/v1/secrets/{name} setSecret 200 401 403 408 413 422 429 503
""".strip()  # noqa: E501
TAGS = {
    "billing",
    "flows",
    "triggers",
    "executions",
    "users",
    "webhooks",
    "health",
    "secrets",
    "api keys",
    "audit",
    "language models",
    "organisms",
}
IN_SNAKE_CASE = {"ChatCompletion", "Embedding", "EmbeddingList", "LanguageModel", "LanguageModelList"}
"""Schemas in the form of OpenAI's API."""

ADDITIONAL_SUCCESSES = {"202", "204"}
"""Success responses that an operation may have in addition to the usual one."""
WITHOUT_BODY = (
    "/start",
    "/stop",
    "/regenerate-token",
    "/cancel",
    "/retry",
    "/restore",
    "/estimate",
    "/redeliver",
    "/portal",
    "/webhooks/stripe",
)
METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}
DOCUMENT = app.openapi()
ALL = [
    pytest.param(method, path, operation, id=operation.get("operationId", path))
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
]
JSON_RESPONSES = [
    pytest.param(content, id=f"{operation['operationId']}-{status}")
    for item in DOCUMENT["paths"].values()
    for operation in item.values()
    for status, response in operation["responses"].items()
    if (content := response.get("content", {}).get("application/json")) is not None
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


def model_of(schema: dict[str, Any]) -> Any:
    """The type from which the schema of a response was made."""
    if "anyOf" in schema:
        return reduce(or_, (model_of(member) for member in schema["anyOf"]))
    if schema.get("type") == "array":
        return list[model_of(schema["items"])]  # type: ignore[misc]
    name = schema["$ref"].removeprefix("#/components/schemas/")
    if item := re.fullmatch(r"(PaginatedResponse|CursorPage)_(\w+)_", name):
        return getattr(schemas, item[1]).__class_getitem__(getattr(schemas, item[2]))
    return getattr(schemas, name)


def examples_of(content: dict[str, Any]) -> list[Any]:
    """The examples of a response; at least one."""
    examples = [content["example"]] if "example" in content else [one["value"] for one in content["examples"].values()]
    assert examples
    return examples


def test_operations_and_their_statuses_match_the_list() -> None:
    """A new route, or a change of a route's statuses, requires a change of this list."""
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


def test_every_tag_is_described() -> None:
    used = {tag for item in DOCUMENT["paths"].values() for operation in item.values() for tag in operation["tags"]}
    assert {tag["name"] for tag in DOCUMENT["tags"]} == used
    assert all(re.fullmatch(r"[A-Z].*\.", tag["description"]) for tag in DOCUMENT["tags"])


@pytest.mark.parametrize(("method", "path", "operation"), ALL)
class TestOperation:
    def test_has_title_description_and_tag(self, method: str, path: str, operation: dict[str, Any]) -> None:
        assert method in METHODS
        assert re.fullmatch(r"[A-Z][a-zA-Z' ]+[a-zA-Z]", operation["summary"])
        assert not operation["summary"].istitle(), "the default title is made from the function's name"
        assert re.fullmatch(r"[A-Z].*\.", operation["description"], re.DOTALL)
        (tag,) = operation["tags"]
        assert tag in TAGS
        successes = [status for status in operation["responses"] if status.startswith("2")]
        assert len(successes) == 1 or set(successes[1:]) <= ADDITIONAL_SUCCESSES
        for parameter in operation.get("parameters", []):
            assert re.fullmatch(r"[A-Z`].*\.", parameter["description"]), parameter["name"]

    def test_every_response_has_its_own_description(self, method: str, path: str, operation: dict[str, Any]) -> None:
        for response in operation["responses"].values():
            assert re.fullmatch(r"[A-Z].*\.", response["description"])
            assert response["description"] != "Successful Response", "the default of FastAPI"

    def test_declares_the_parameters_of_its_path(self, method: str, path: str, operation: dict[str, Any]) -> None:
        parameters = [one for one in operation.get("parameters", []) if one["in"] == "path"]
        assert [one["name"] for one in parameters] == re.findall(r"{(\w+)}", path)
        assert all(one["required"] for one in parameters)
        names = [(one["in"], one["name"]) for one in operation.get("parameters", [])]
        assert len(set(names)) == len(names)
        assert all(one["schema"].get("format") == "uuid" for one in parameters if one["name"].endswith("_id"))

    def test_error_responses_are_problems_with_examples(
        self, method: str, path: str, operation: dict[str, Any]
    ) -> None:
        responses = operation["responses"]
        is_authenticated = path.startswith(("/api/v1/", "/v1/"))
        assert ("401" in responses) == (is_authenticated or operation["operationId"] == "receiveWebhook")
        assert ("security" in operation) == is_authenticated
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

    def test_success_responses_have_schemas(self, method: str, path: str, operation: dict[str, Any]) -> None:
        for status, response in operation["responses"].items():
            if status == "204":
                assert method == "delete" or path.endswith("/events")
                assert "content" not in response
            elif status.startswith("2") and path.endswith("/events"):
                assert set(response["content"]) == {"text/event-stream"}
            elif status.startswith("2") and path.endswith("/export"):
                assert set(response["content"]) == {"application/zip"}
            elif status.startswith("2") and path.startswith("/resume/") and method == "get":
                assert set(response["content"]) == {"text/html"}
            elif status.startswith("2"):
                schema = response["content"]["application/json"]["schema"]
                assert all("$ref" in one for one in schema.get("anyOf", [schema.get("items", schema)]))

    def test_success_responses_have_examples(self, method: str, path: str, operation: dict[str, Any]) -> None:
        for status, response in operation["responses"].items():
            if status.startswith("2") and status != "204" and not path.endswith("/export"):
                ((_, content),) = response["content"].items()
                assert examples_of(content)

    def test_request_body_has_an_example(self, method: str, path: str, operation: dict[str, Any]) -> None:
        body = operation.get("requestBody")
        if body is None:
            assert method in ("get", "delete") or path.endswith(WITHOUT_BODY)
            return
        contents = json.dumps(body["content"])
        references = re.findall('"(#/components/schemas/[^"]+)"', contents)
        assert "example" in contents or any("examples" in json.dumps(resolved(one)) for one in references)


@pytest.mark.parametrize("content", JSON_RESPONSES)
def test_example_of_a_response_is_valid(content: dict[str, Any]) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(model_of(content["schema"]))
    for example in examples_of(content):
        value = adapter.validate_json(json.dumps(example))
        written = adapter.dump_python(value, mode="json", by_alias=True, exclude_unset=True)
        assert written == example, "no unknown members, and times and ids as the API writes them"


def test_ids_in_examples_refer_to_each_other() -> None:
    found = {
        (name, value)
        for parameters in JSON_RESPONSES
        for node in nodes(parameters.values[0])
        for name, value in node.items()
        if name in ("userId", "flowId", "triggerId", "executionId", "retryOf") and value is not None
        if isinstance(value, str)
    }
    assert found == {
        ("userId", examples.USER["id"]),
        ("flowId", examples.FLOW["id"]),
        ("triggerId", examples.TRIGGER["id"]),
        ("executionId", examples.EXECUTION["id"]),
        ("retryOf", examples.EXECUTION["id"]),
    }


def test_example_definition_is_valid_and_matches_the_example_canvas() -> None:
    organism = parse(examples.ORGANISM_YAML, get_registry())
    assert [listener.name for listener in organism.listeners] == ["confirm"]
    assert yaml_to_canvas(examples.ORGANISM_YAML, get_registry()) == (examples.CANVAS, [])


def test_schemas_of_server_sent_events() -> None:
    operation = DOCUMENT["paths"]["/api/v1/flows/{flow_id}/executions/{execution_id}/events"]["get"]
    content = operation["responses"]["200"]["content"]["text/event-stream"]
    assert content["schema"] == {"type": "string"}
    payloads = {}
    for reference in content["itemSchema"]["oneOf"]:
        schema = resolved(reference["$ref"])
        assert schema["required"] == ["event", "data"]
        assert schema["properties"]["data"]["contentMediaType"] == "application/json"
        payloads[schema["properties"]["event"]["const"]] = schema["properties"]["data"]["contentSchema"]["$ref"]
    assert payloads == {
        "execution": "#/components/schemas/ExecutionOutline",
        "step": "#/components/schemas/StepOutline",
        "agent.text": "#/components/schemas/AgentText",
    }


def test_example_of_the_event_stream_is_valid() -> None:
    operation = DOCUMENT["paths"]["/api/v1/flows/{flow_id}/executions/{execution_id}/events"]["get"]
    events = parse_events(operation["responses"]["200"]["content"]["text/event-stream"]["example"])
    assert [validated(event).event for event in events] == ["execution", "agent.text", "step", "execution"]
    assert [event.id for event in events] == [None, None, "2", "end"]


def test_document_is_valid() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert DOCUMENT["info"]["title"] == "BloxServer API"
    assert DOCUMENT["info"]["version"]
    assert DOCUMENT["info"]["description"]
    assert json.loads(json.dumps(DOCUMENT, allow_nan=False)) == DOCUMENT
    references = {node["$ref"] for node in nodes(DOCUMENT) if isinstance(node.get("$ref"), str)}
    assert all(resolved(reference) for reference in references)
    components = DOCUMENT["components"]["schemas"]
    assert {f"#/components/schemas/{name}" for name in components} == references, "every schema is used"
    assert DOCUMENT["components"]["securitySchemes"]["clerk"]["scheme"] == "bearer"


@pytest.mark.parametrize("name", DOCUMENT["components"]["schemas"])
def test_schema_is_in_camel_case_and_has_titles(name: str) -> None:
    schema = DOCUMENT["components"]["schemas"][name]
    assert name == "JsonValue" or schema["type"] in ("object", "string")
    properties = schema.get("properties", {})
    separator = "_" if name in IN_SNAKE_CASE else ""
    assert all(re.fullmatch(f"[a-z][a-zA-Z0-9{separator}]*", one) for one in properties)
    assert set(schema.get("required", [])) <= set(properties)
    for member, value in properties.items():
        assert set(value) & {"type", "$ref", "anyOf", "allOf"} or "title" in value
        title = value.get("title", "").replace(" ", separator)
        assert title.lower() in ("", member.lower())
        assert "title" not in value or value["title"].count(" ") == len(re.findall("[A-Z_]", member))
    assert all(node["enum"] for node in nodes(schema) if "enum" in node)
    complete = {"Flow", "FlowSummary", "Trigger", "Execution", "ExecutionSummary", "FlowStats", "User"}
    complete |= {"UsageDashboard", "AwaitedExecution", "Step", "FlowVersion", "FlowVersionSummary"}
    complete |= {"ExecutionOutline", "StepOutline"}
    if name in complete:
        assert set(schema["required"]) == set(properties), "every member of a response is always present"


async def test_document_is_served(client: httpx.AsyncClient) -> None:
    assert (await client.get("/openapi.json")).json() == json.loads(json.dumps(DOCUMENT))


def test_client_packages_have_no_registry_and_are_pinned() -> None:
    """npm installs the packages from the configured registry and verifies their hashes."""
    folder = Path(__file__).parents[1] / "openapi_client"
    lock = json.loads((folder / "package-lock.json").read_text())
    packages = {path: package for path, package in lock["packages"].items() if path}
    assert packages
    assert all("resolved" not in package and package["integrity"] for package in packages.values())
    pinned = json.loads((folder / "package.json").read_text())["devDependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in pinned.values())
