"""A call of every operation of the OpenAPI document."""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from uuid import uuid4

import httpx
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.main import app
from bloxserver.models.tables import (
    ApiKeyRecord,
    FlowStatus,
    FlowVersionRecord,
    SecretRecord,
    SigningSecretRecord,
    TriggerType,
    UserApiKeyRecord,
    UserRecord,
)
from bloxserver.models.upsert import insert_into
from tests import factories
from tests.provider_server import VALID_KEYS

METHODS = {"get", "put", "post", "patch", "delete"}


class Call(NamedTuple):
    """A successful call of an operation by the owner, without the ids in its path."""

    body: dict[str, Any] | None = None
    status: FlowStatus = FlowStatus.RUNNING
    """The flow's status before the call."""
    query: str = ""


AUTHENTICATED: dict[str, Call] = {
    "getCurrentUser": Call(),
    "exportCurrentUser": Call(),
    "getUsage": Call(),
    "getUsageHistory": Call(),
    "listFlowUsage": Call(),
    "getBilling": Call(),
    "getLlmUsage": Call(),
    "startCheckout": Call({}),
    "openBillingPortal": Call(),
    "listFlows": Call(),
    "createFlow": Call({"name": "Another"}),
    "getFlow": Call(),
    "updateFlow": Call({"name": "Renamed", "canvasState": None}),
    "deleteFlow": Call(),
    "startFlow": Call(status=FlowStatus.STOPPED),
    "stopFlow": Call(),
    "listTriggers": Call(),
    "createTrigger": Call({"type": "webhook", "name": "Mine", "config": {}}),
    "getTrigger": Call(),
    "updateTrigger": Call({"name": "Renamed"}),
    "listUpcomingFirings": Call(),
    "deleteTrigger": Call(),
    "regenerateTriggerToken": Call(),
    "listSigningSecrets": Call(),
    "createSigningSecret": Call(),
    "deleteSigningSecret": Call(),
    "listDeliveries": Call(),
    "redeliverWebhook": Call(),
    "listExecutions": Call(),
    "runFlow": Call({"inputPayload": "x"}),
    "getFlowStats": Call(),
    "getFlowStatsSeries": Call(),
    "listAllExecutions": Call(),
    "getExecution": Call(),
    "listSecrets": Call(),
    "createSecret": Call({"name": "NEW", "value": "x"}),
    "setSecret": Call({"value": "x"}),
    "deleteSecret": Call(),
    "listLlmKeys": Call(),
    "addLlmKey": Call({"provider": "openai", "apiKey": VALID_KEYS["openai"]}),
    "deleteLlmKey": Call(),
    "listApiKeys": Call(),
    "createApiKey": Call({"name": "Mine", "scopes": ["admin"]}),
    "revokeApiKey": Call(),
    "listAuditEvents": Call(),
    "listSteps": Call(),
    "streamExecution": Call(query="?last_event_id=end"),
    "cancelExecution": Call(),
    "retryExecution": Call(),
    "getFlowVars": Call(),
    "setFlowVars": Call({"vars": {"a": 1}}),
    "listFlowVersions": Call(),
    "getFlowVersion": Call(),
    "restoreFlowVersion": Call(),
    "listBlocks": Call(),
    "validateOrganism": Call({"organismYaml": "x"}),
    "validateFlow": Call(),
    "estimateFlow": Call(),
    "getFlowCanvas": Call(),
    "deriveOrganism": Call(),
    "createChatCompletion": Call({"model": "m", "messages": [{"role": "user", "content": "x"}]}),
    "createEmbeddings": Call({"model": "m", "input": "x"}),
    "listLanguageModels": Call(),
    "deleteCurrentUser": Call(),  # the last: a test makes all calls as one user
}
CALLS_OF_MODELS = {"createChatCompletion", "createEmbeddings"}
"""Operations that respond with 503, because the tests of all operations run without the lifespan of the app."""
PUBLIC = {
    "getServiceInfo",
    "getHealth",
    "getLiveness",
    "getReadiness",
    "receiveWebhook",
    "testWebhook",
    "showQuestion",
    "answerQuestion",
    "receiveClerkEvent",
    "receiveStripeEvent",
}


class Operation(NamedTuple):
    method: str
    path: str

    @property
    def ids(self) -> set[str]:
        return set(re.findall(r"{(\w+)}", self.path))


OPERATIONS = {
    operation["operationId"]: Operation(method.upper(), path)
    for path, methods in app.openapi()["paths"].items()
    for method, operation in methods.items()
    if method in METHODS
}


async def ids_of(session: AsyncSession, user: UserRecord, status: FlowStatus = FlowStatus.RUNNING) -> dict[str, str]:
    """The path parameters of a new flow of the user with all that can belong to it, and of keys and a secret."""
    flow = await factories.create_flow(session, user, status=status, canvas_state={"nodes": []})
    trigger = await factories.create_trigger(session, flow)
    execution = await factories.create_execution(session, flow, trigger_id=trigger.id, trigger_type=TriggerType.WEBHOOK)
    signing = SigningSecretRecord(trigger_id=trigger.id, hint="", ciphertext="")
    secret = SecretRecord(user_id=user.id, name=f"S_{uuid4().hex}")
    key = ApiKeyRecord(user_id=user.id, name="Theirs", key_hash=uuid4().bytes, hint="", scopes=["read"])
    session.add_all([signing, secret, key, FlowVersionRecord(flow_id=flow.id, number=1, organism_yaml="v")])
    await session.execute(
        insert_into(session, UserApiKeyRecord).values(user_id=user.id, provider="xai").on_conflict_do_nothing()
    )
    await session.commit()
    ids = {"flow_id": flow.id, "trigger_id": trigger.id, "execution_id": execution.id, "number": 1}
    ids |= {
        "name": secret.name,
        "key_id": key.id,
        "secret_id": signing.id,
        "delivery_id": execution.id,
        "provider": "xai",
    }
    return {name: str(value) for name, value in ids.items()}


async def call(
    client: httpx.AsyncClient, name: str, ids: dict[str, str], headers: dict[str, str] | None = None
) -> httpx.Response:
    operation = OPERATIONS[name]
    body, query = AUTHENTICATED[name].body, AUTHENTICATED[name].query
    return await client.request(operation.method, operation.path.format(**ids) + query, json=body, headers=headers)
