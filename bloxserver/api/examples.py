"""Example response bodies of the OpenAPI document. Ids and times refer to each other as in a real installation."""

from __future__ import annotations

from typing import Any

Example = dict[str, Any]

ORGANISM_YAML = """\
organism:
  name: order-intake
listeners:
  - name: confirm
    description: Writes the confirmation of an order
    handler: text.template
    config:
      template: Thank you for order {{ payload.number }}.
"""

USER_ID = "019cad8f-ac00-7a3e-9d41-6f2c8e5b7a10"
FLOW_ID = "019cadbe-7620-7c52-8f0a-3b9d4e6a2c71"
TRIGGER_ID = "019cadc0-e400-7e18-a4c3-5d7f1b2e9068"
SCHEDULE_ID = "019cadc1-ce60-7b2d-9c65-8e1a4f3d7052"
EXECUTION_ID = "019cade7-b530-7d94-b1e7-2c6a8f4d3e95"
RETRY_ID = "019cadea-c270-70c6-8d2b-9f5e7a1c4b38"
STEP_ID = "019cade7-b53a-7f21-963d-7b4e1c8a5d06"

WEBHOOK_TOKEN = "example-token-a1b2c3d4e5f6g7h8i9j0k1l2m3n4o"  # noqa: S105
INPUT_PAYLOAD = '{"number":17}'
OUTPUT_PAYLOAD = '{"text":"Thank you for order 17."}'

SERVICE = {"name": "BloxServer API", "version": "0.1.0", "docs": "/docs", "health": "/health"}
HEALTH = {"status": "healthy", "timestamp": "2026-03-02T10:20:00.000000Z", "service": "bloxserver-api"}
LIVENESS = {"status": "alive", "timestamp": "2026-03-02T10:20:00.000000Z"}
READINESS = {
    "status": "ready",
    "timestamp": "2026-03-02T10:20:00.000000Z",
    "checks": {"database": "ok", "migrations": "ok", "engine": "ok"},
}
NOT_READY = {
    "status": "unhealthy",
    "timestamp": "2026-03-02T10:20:00.000000Z",
    "checks": {"database": "failed", "engine": "ok"},
    "errors": ["database: the database cannot be reached"],
}

USER = {
    "id": USER_ID,
    "clerkId": "user_2nGq8mXvT4bL",
    "email": "ada@example.com",
    "name": "Ada Lovelace",
    "avatarUrl": "https://example.com/ada.png",
    "tier": "pro",
    "billingStatus": "active",
    "trialEndsAt": None,
    "currentPeriodEnd": "2026-04-01T00:00:00.000000Z",
    "createdAt": "2026-03-02T08:00:00.000000Z",
}
USAGE = {
    "periodStart": "2026-03-01T00:00:00.000000Z",
    "periodEnd": "2026-04-01T00:00:00.000000Z",
    "runsUsed": 1250,
    "runsLimit": 100000,
    "runsPercentage": 1.25,
    "tokensUsed": 48200,
    "estimatedOverage": 0.0,
    "daysRemaining": 30,
    "storedBytes": 18350080,
    "storedBytesLimit": 53687091200,
    "includedStoredBytes": 10000000000,
    "storageOverage": 0.0,
    "limits": [
        {"name": "runs", "used": 1250, "limit": 100000},
        {"name": "flows", "used": 4, "limit": 100},
        {"name": "triggers_per_flow", "used": 2, "limit": 50},
        {"name": "secrets", "used": 3, "limit": 500},
        {"name": "api_keys", "used": 1, "limit": 100},
        {"name": "stored_bytes", "used": 18350080, "limit": 53687091200},
    ],
}

CANVAS = {
    "nodes": [
        {
            "id": "confirm",
            "type": "block",
            "position": {"x": 0, "y": 0},
            "data": {
                "label": "confirm",
                "name": "confirm",
                "description": "Writes the confirmation of an order",
                "handler": "text.template",
                "config": {"template": "Thank you for order {{ payload.number }}."},
            },
        }
    ],
    "edges": [],
    "viewport": {"x": 0, "y": 0, "zoom": 1},
}
CREATED_FLOW: Example = {
    "id": FLOW_ID,
    "userId": USER_ID,
    "name": "Order intake",
    "description": "Confirms orders from the shop",
    "organismYaml": ORGANISM_YAML,
    "canvasState": None,
    "status": "stopped",
    "activeVersion": None,
    "latestVersion": 1,
    "containerId": None,
    "errorMessage": None,
    "createdAt": "2026-03-02T08:51:06.400000Z",
    "updatedAt": "2026-03-02T08:51:06.400000Z",
}
FLOW = CREATED_FLOW | {"status": "running", "activeVersion": 1, "updatedAt": "2026-03-02T09:30:00.000000Z"}
STARTING_FLOW = FLOW | {"status": "starting"}
STOPPING_FLOW = FLOW | {"status": "stopping", "updatedAt": "2026-03-02T18:00:00.000000Z"}
UPDATED_FLOW = FLOW | {"name": "Order confirmation", "updatedAt": "2026-03-02T11:00:00.000000Z"}
RESTORED_FLOW = FLOW | {"latestVersion": 3, "updatedAt": "2026-03-02T12:00:00.000000Z"}
FLOW_SUMMARY = {name: FLOW[name] for name in ("id", "name", "description", "status", "updatedAt")}

VERSION_SUMMARY: Example = {"number": 1, "createdAt": "2026-03-02T08:51:06.400000Z", "active": True, "latest": True}
VERSION = VERSION_SUMMARY | {"organismYaml": ORGANISM_YAML, "canvasState": None}

TRIGGER: Example = {
    "id": TRIGGER_ID,
    "flowId": FLOW_ID,
    "type": "webhook",
    "name": "Orders from the shop",
    "config": {},
    "webhookToken": WEBHOOK_TOKEN,
    "webhookUrl": f"https://api.openblox.ai/webhooks/{WEBHOOK_TOKEN}",
    "enabled": True,
    "nextFireAt": None,
    "lastFiredAt": "2026-03-02T09:36:09.520000Z",
    "disabledReason": None,
    "previousTokenExpiresAt": None,
    "createdAt": "2026-03-02T08:53:45.600000Z",
}
SIGNING_SECRET: Example = {
    "id": "019cad83-4a5b-7c6d-8e7f-90a1b2c3d4e5",
    "hint": "LaSw",
    "createdAt": "2026-03-02T08:55:45.600000Z",
}
CREATED_SIGNING_SECRET = SIGNING_SECRET | {"secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
DELIVERIES: list[Example] = [
    {
        "id": "019cad90-5b6c-7d7e-8f80-a1b2c3d4e5f6",
        "receivedAt": "2026-03-02T09:40:12.310000Z",
        "outcome": "rejected",
        "status": 401,
        "code": "invalid_signature",
        "message": "The signature does not match",
        "bytes": 512,
        "executionId": None,
        "redeliveryOf": None,
    },
    {
        "id": EXECUTION_ID,
        "receivedAt": "2026-03-02T09:36:09.520000Z",
        "outcome": "accepted",
        "status": 200,
        "code": None,
        "message": None,
        "bytes": 498,
        "executionId": EXECUTION_ID,
        "redeliveryOf": None,
    },
]
CREATED_TRIGGER = TRIGGER | {"lastFiredAt": None}
UPDATED_TRIGGER = TRIGGER | {"enabled": False}
SCHEDULE: Example = {
    "id": SCHEDULE_ID,
    "flowId": FLOW_ID,
    "type": "schedule",
    "name": "Weekday mornings",
    "config": {"cron": "0 9 * * 1-5", "timezone": "Europe/Berlin"},
    "webhookToken": None,
    "webhookUrl": None,
    "enabled": True,
    "nextFireAt": "2026-03-03T08:00:00.000000Z",
    "lastFiredAt": None,
    "disabledReason": None,
    "previousTokenExpiresAt": None,
    "createdAt": "2026-03-02T08:54:45.600000Z",
}
UPCOMING = {
    "times": ["2026-03-03T08:00:00.000000Z", "2026-03-04T08:00:00.000000Z", "2026-03-05T08:00:00.000000Z"],
}
WEBHOOK_ACCEPTED = {
    "status": "accepted",
    "executionId": EXECUTION_ID,
    "message": "Webhook received and execution started",
}
WEBHOOK_TEST = {
    "valid": True,
    "triggerName": "Orders from the shop",
    "flowName": "Order intake",
    "flowStatus": "running",
}

EXECUTION: Example = {
    "id": EXECUTION_ID,
    "status": "success",
    "triggerType": "webhook",
    "startedAt": "2026-03-02T09:36:09.520000Z",
    "durationMs": 31,
    "filtered": False,
    "costUsd": 0.0,
    "flowId": FLOW_ID,
    "flowVersion": 1,
    "triggerId": TRIGGER_ID,
    "retryOf": None,
    "parentId": None,
    "pickedUpAt": "2026-03-02T09:36:09.528000Z",
    "completedAt": "2026-03-02T09:36:09.551000Z",
    "errorMessage": None,
    "inputEncoding": "text",
    "inputTokens": 0,
    "outputTokens": 0,
    "inputPayload": INPUT_PAYLOAD,
    "outputPayload": OUTPUT_PAYLOAD,
}
RUNNING_EXECUTION = EXECUTION | {"status": "running", "durationMs": None, "completedAt": None, "outputPayload": None}
MANUAL_EXECUTION = RUNNING_EXECUTION | {"triggerType": "manual", "triggerId": None, "pickedUpAt": None}
RETRIED_EXECUTION = MANUAL_EXECUTION | {
    "id": RETRY_ID,
    "retryOf": EXECUTION_ID,
    "startedAt": "2026-03-02T09:39:29.520000Z",
}
REDELIVERED_EXECUTION = RUNNING_EXECUTION | {"id": RETRY_ID, "retryOf": EXECUTION_ID}
CANCELLED_EXECUTION = RUNNING_EXECUTION | {
    "status": "cancelled",
    "durationMs": 2480,
    "completedAt": "2026-03-02T09:36:12.000000Z",
}
STILL_RUNNING = RUNNING_EXECUTION | {"executionId": EXECUTION_ID, "message": "Execution is still running"}
ENDED_EXECUTION = EXECUTION | {"executionId": EXECUTION_ID, "message": "Execution has ended"}
SUMMARISED = ("id", "status", "triggerType", "startedAt", "durationMs", "filtered", "costUsd")
EXECUTION_SUMMARY = {name: EXECUTION[name] for name in SUMMARISED}
FLOW_EXECUTION_SUMMARY = EXECUTION_SUMMARY | {"flowId": FLOW_ID, "flowName": FLOW["name"]}
NEXT_CURSOR = "AAZHhYx_FyABmU6xQ2B7gqXHPCqZ9yEKEw4fXQd2mq0="
STATISTICS = {
    "flowId": FLOW_ID,
    "executionsTotal": 1250,
    "executionsSuccess": 1238,
    "executionsError": 9,
    "executionsTimeout": 1,
    "executionsCancelled": 1,
    "executionsRunning": 1,
    "avgDurationMs": 34.5,
    "p50DurationMs": 31,
    "p95DurationMs": 62,
    "p99DurationMs": 240,
    "inputTokens": 0,
    "outputTokens": 0,
    "lastExecutedAt": "2026-03-02T09:36:09.520000Z",
}
SERIES = {
    "flowId": FLOW_ID,
    "bucket": "hour",
    "tz": "Europe/Berlin",
    "buckets": [
        {
            "start": "2026-03-02T09:00:00.000000Z",
            "end": "2026-03-02T10:00:00.000000Z",
            "executions": 34,
            "success": 32,
            "error": 1,
            "timeout": 0,
            "cancelled": 0,
            "running": 1,
            "avgDurationMs": 33.5,
            "inputTokens": 0,
            "outputTokens": 0,
        }
    ],
}
STEP: Example = {
    "id": STEP_ID,
    "parentId": None,
    "itemIndex": None,
    "listener": "confirm",
    "handler": "text.template",
    "status": "success",
    "attempt": 1,
    "copied": False,
    "startedAt": "2026-03-02T09:36:09.530000Z",
    "completedAt": "2026-03-02T09:36:09.548000Z",
    "durationMs": 18,
    "inputTokens": 0,
    "outputTokens": 0,
    "costUsd": 0.0,
    "warnings": [],
    "inputPayload": INPUT_PAYLOAD,
    "outputPayload": OUTPUT_PAYLOAD,
    "payloadsOmitted": False,
} | dict.fromkeys(("errorCode", "errorMessage", "routedTo", "calledExecutionId", "resumesAt", "answeredBy"))

SECRET = {
    "name": "SHOP_TOKEN",
    "createdAt": "2026-03-02T08:40:00.000000Z",
    "updatedAt": "2026-03-02T08:40:00.000000Z",
}

API_KEY = {
    "id": "5d0f6f3e-8f5b-4b0e-9d3c-1a7f0c2b9e44",
    "name": "Deployment",
    "hint": "blx_live_…m2Xq",
    "scopes": ["read", "run"],
    "flowIds": None,
    "expiresAt": "2027-03-02T00:00:00.000000Z",
    "lastUsedAt": "2026-03-02T08:40:00.000000Z",
    "lastUsedAddress": "203.0.113.7",
    "createdAt": "2026-03-02T08:40:00.000000Z",
}
CREATED_API_KEY = API_KEY | {"lastUsedAt": None, "lastUsedAddress": None, "key": "blx_live_" + "…"}

AUDIT_EVENT = {
    "id": "019cadc0-e46e-7b52-9c1d-8a3f5e7d2b40",
    "createdAt": "2026-03-02T08:53:56.206000Z",
    "actor": "api_key",
    "actorId": API_KEY["id"],
    "action": "flow.updated",
    "resourceId": FLOW_ID,
    "flowId": FLOW_ID,
    "address": "203.0.113.7",
    "requestId": "5f0c6f6e1f5c4c4b8d0e0a5b2f1f7a3e",
    "before": {"name": "Orders", "latestVersion": 3},
    "after": {"name": "Order intake", "latestVersion": 4},
}

PROBLEM = {
    "line": 6,
    "column": 14,
    "code": "unknown_handler",
    "severity": "error",
    "message": 'unknown handler "text.templat"',
    "hint": 'did you mean "text.template"?',
    "path": ["listeners", 0, "handler"],
}
VALIDATION = {"valid": False, "problems": [PROBLEM]}
VALID = {"valid": True, "problems": []}
DERIVED_CANVAS = {"canvasState": CANVAS, "derived": True, "problems": []}
DERIVED_ORGANISM = {"organismYaml": ORGANISM_YAML, "valid": True, "problems": []}
BLOCK = {
    "kind": "block",
    "name": "text.template",
    "aliases": [],
    "description": "Writes a text with values of the message in it.",
    "configSchema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"template": {"type": "string", "title": "Template"}},
        "required": ["template"],
        "additionalProperties": False,
    },
    "payloadSchema": {"$schema": "https://json-schema.org/draft/2020-12/schema", "description": "Any JSON value."},
    "example": {"config": {"template": "Thank you for order {{ payload.number }}."}, "payload": {"number": 17}},
    "templates": ["template"],
}


def page(item: Example, size: int = 20) -> Example:
    """A page with a single item."""
    return {"items": [item], "total": 1, "page": 1, "pageSize": size, "hasMore": False, "totalIsExact": True}


def cursor_page(item: Example) -> Example:
    """The first of two pages with a single item each."""
    return page(item, 1) | {"total": 2, "hasMore": True, "nextCursor": NEXT_CURSOR}
