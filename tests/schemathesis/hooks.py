"""Loaded by schemathesis: strings of our formats, and short waits."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import schemathesis
from hypothesis import strategies

from bloxserver.api.request_schemas import NESTING
from bloxserver.services.idempotency import HEADER

MAX_WAIT = 0.1

schemathesis.openapi.format("cron", strategies.sampled_from(["0 9 * * 1-5", "*/5 * * * *", "30 4 1 jan sun"]))
schemathesis.openapi.format("timezone", strategies.sampled_from(["UTC", "Europe/Berlin", "Pacific/Chatham"]))


@schemathesis.hook
def before_load_schema(context: schemathesis.HookContext, raw_schema: dict[str, Any]) -> None:
    """Remove the schemas of streams, and keep those of single events.

    In OpenAPI 3.1 they describe the text. Schemathesis compares them with the list of events, as in OpenAPI 3.2.
    """
    for item in raw_schema["paths"].values():
        for operation in item.values():
            for response in operation["responses"].values():
                if (content := response.get("content", {}).get("text/event-stream")) is not None:
                    del content["schema"]


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, object]) -> None:
    """Shorten valid waits, which are up to a minute, and remove what is invalid and cannot be described.

    An idempotency key is made unique, because the key of another request is refused.
    """
    if case.headers is not None and str(case.headers.get(HEADER, "")).strip():
        case.headers[HEADER] += str(uuid4())
    wait = (case.query or {}).get("wait")
    if isinstance(wait, int | float) and MAX_WAIT < wait <= 60:
        case.query["wait"] = MAX_WAIT
    if isinstance(case.body, dict | list):
        case.body = _without_deep_nul(case.body, NESTING + 1)  # the values of members are any JSON values


def _without_deep_nul(value: Any, levels: int) -> Any:
    """Remove NUL characters below the levels that the schema of any JSON value describes."""
    if isinstance(value, str):
        return value.replace("\0", "") if levels < 0 else value
    if isinstance(value, list):
        return [_without_deep_nul(item, levels - 1) for item in value]
    if isinstance(value, dict):
        return {_without_deep_nul(name, levels): _without_deep_nul(item, levels - 1) for name, item in value.items()}
    return value
