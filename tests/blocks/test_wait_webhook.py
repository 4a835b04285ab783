"""Configs of waits, and their definitions."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from bloxserver.blocks.base import Awaited, BlockContext
from bloxserver.blocks.registry import get_registry
from bloxserver.blocks.wait_webhook import WaitWebhookConfig, WaitWebhookPayload, handle_wait_webhook
from bloxserver.organism.parse import check

MAX_WAIT = 2_592_000


@pytest.mark.parametrize(
    "config",
    [
        {"fields": [{"name": "a"}, {"name": "a"}]},
        {"fields": [{"name": "button"}]},
        {"fields": [{"name": "answered_by"}]},
        {"fields": [{"name": "a-b"}]},
        {"fields": [{"name": "a", "type": "select"}]},
        {"fields": [{"name": "a", "type": "text", "options": ["x"]}]},
        {"fields": [{"name": "a", "type": "file"}]},
        {"fields": [{"name": f"f{number}"} for number in range(21)]},
        {"buttons": [{"value": "x"}, {"value": "x"}]},
        {"buttons": [{"label": "x"}]},
        {"question": "{{ nothing"},
        {"question": "x" * 10_001},
    ],
)
def test_invalid_config_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        WaitWebhookConfig.model_validate(config)


async def test_question_is_rendered(context: BlockContext) -> None:
    config = WaitWebhookConfig(question="Pay {{ payload.amount }} EUR?")
    awaited = await handle_wait_webhook(WaitWebhookPayload({"amount": 12}), config, context)
    assert awaited == Awaited("Pay 12 EUR?")


def codes(listener: str) -> list[str]:
    text = f"organism: {{name: x}}\nlisteners:\n  - {{name: ask, description: d, {listener}}}\n"
    return [problem.code for problem in check(text, get_registry())]


def test_wait_can_take_longer_than_an_execution() -> None:
    assert codes(f"handler: wait.webhook, timeout_seconds: {MAX_WAIT}") == []
    assert codes(f"handler: wait.webhook, timeout_seconds: {MAX_WAIT + 1}") == ["out_of_range"]
    assert codes(f"handler: echo, timeout_seconds: {MAX_WAIT}") == ["out_of_range"]


def test_question_has_no_secrets() -> None:
    assert codes('handler: wait.webhook, config: {question: "{{ secrets.TOKEN }}"}') == ["secret_not_allowed"]


def test_loop_does_not_wait() -> None:
    assert codes("handler: wait.webhook, for_each: payload") == ["unsupported"]
