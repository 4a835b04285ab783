"""Examples of responses about language models, for the OpenAPI document."""

from __future__ import annotations

USAGE = {
    "groupBy": "model",
    "groups": [
        {
            "key": "claude-sonnet-4-5",
            "name": None,
            "calls": 120,
            "failedCalls": 2,
            "cachedCalls": 14,
            "inputTokens": 84200,
            "outputTokens": 19100,
            "costUsd": 0.5391,
        }
    ],
}
ESTIMATE = {"calls": 20, "tokens": 550549, "costUsd": 1.89}

OWN_KEY = {
    "id": "019cadc0-e46e-7b52-9c1d-8a3f5e7d2b41",
    "provider": "anthropic",
    "keyHint": "m2Xq",
    "isValid": True,
    "lastError": None,
    "lastUsedAt": "2026-03-02T08:40:00.000000Z",
    "createdAt": "2026-03-01T10:15:00.000000Z",
}

AGENT_TEXT = {
    "stepId": "019cade7-b53b-7c8e-b04d-1e6a9d2f5c73",
    "listener": "summarise",
    "attempt": 1,
    "answer": 1,
    "offset": 0,
    "text": "The page",
}
