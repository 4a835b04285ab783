"""Loaded by schemathesis: strings of our formats, and short waits."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import strategies

MAX_WAIT = 0.1

schemathesis.openapi.format("cron", strategies.sampled_from(["0 9 * * 1-5", "*/5 * * * *", "30 4 1 jan sun"]))
schemathesis.openapi.format("timezone", strategies.sampled_from(["UTC", "Europe/Berlin", "Pacific/Chatham"]))


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, object]) -> None:
    """Shorten valid waits, which are up to a minute."""
    wait = (case.query or {}).get("wait")
    if isinstance(wait, int | float) and MAX_WAIT < wait <= 60:
        case.query["wait"] = MAX_WAIT
