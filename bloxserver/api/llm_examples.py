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
