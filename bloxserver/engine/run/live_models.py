"""The access of an agent to language models, which passes the texts of their answers on to those who watch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

from bloxserver.blocks.base import StepWarning
from bloxserver.engine.live_texts import AgentText, LiveTexts
from bloxserver.engine.run.messages import Message
from bloxserver.llm.gateway import CallerModels

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage, ModelResponse
    from pydantic_ai.tools import ToolDefinition


class LiveModels:
    """The access for one attempt at a message."""

    __slots__ = ("_attempt", "_execution_id", "_message", "_models", "_texts")

    def __init__(
        self, models: CallerModels, texts: LiveTexts, execution_id: UUID, message: Message, attempt: int
    ) -> None:
        self._models = models
        self._texts = texts
        self._execution_id = execution_id
        self._message = message
        self._attempt = attempt

    async def load(self, model: str | None) -> None:
        await self._models.load(model)

    async def request(
        self,
        messages: Sequence[ModelMessage],
        *,
        model: str | None = None,
        tools: Sequence[ToolDefinition] = (),
        temperature: float | None = None,
        max_tokens: int | None = None,
        cache: bool = True,
    ) -> ModelResponse:
        """Return the complete response, whose text is sent to those who watch the execution as it arrives."""
        answer = 1 + sum(message.kind == "response" for message in messages)
        step_id, listener = self._message.id, self._message.listener
        beginning = AgentText(self._execution_id, step_id, listener, self._attempt, answer, 0, "")
        with self._texts.written(beginning) as text:
            return await self._models.request(
                messages,
                model=model,
                tools=tools,
                temperature=temperature,
                max_tokens=max_tokens,
                cache=cache,
                on_text=text.add,
            )

    def take_warnings(self) -> Sequence[StepWarning]:
        return self._models.take_warnings()
