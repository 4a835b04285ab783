"""The conversations of agents with language models."""

from __future__ import annotations

from typing import Protocol

from bloxserver.blocks.base import STOPPING, BlockError, ExecutionStopped, StepWarning, Tool
from bloxserver.engine.run.attempt import Attempt
from bloxserver.engine.run.error_reports import report_of
from bloxserver.engine.run.messages import Message, Step, Tokens
from bloxserver.models.enums import StepStatus
from bloxserver.raw_json import Value


class AgentRun(Protocol):
    """The run of an execution, as its agents use it."""

    async def call(self, agent: Message, listener: str, payload: Value, call: str) -> Step:
        """Have a listener handle an agent's call; returns the step once it has ended."""

    async def keep(self, step: Step) -> None:
        """Save the progress of an agent."""


class StoredConversation:
    """The conversation of an agent, saved in its step."""

    def __init__(self, run: AgentRun, attempt: Attempt, step: Step) -> None:
        """The conversation continues from the state of `step`."""
        self._run = run
        self._attempt = attempt
        self.state: Value = step.state
        self.tokens = step.tokens

    async def keep(self, state: Value, *, input_tokens: int, output_tokens: int) -> None:
        self.state = state
        self.tokens = self.tokens.plus(Tokens(input_tokens, output_tokens))
        await self._run.keep(self._attempt.step(StepStatus.RUNNING, state=state, tokens=self.tokens))

    def warn(self, warning: StepWarning) -> None:
        if warning not in self._attempt.warnings:
            self._attempt.warnings.append(warning)

    async def call(self, tool: Tool, payload: Value, call: str) -> Value:
        step = await self._run.call(self._attempt.message, tool.listener, payload, call)
        if step.status is StepStatus.ERROR and step.error_code in STOPPING:
            raise ExecutionStopped(step.error_code or "", step.error or "failed")
        if step.status is StepStatus.ERROR:
            raise BlockError(*report_of(step), retryable=False)
        return step.output
