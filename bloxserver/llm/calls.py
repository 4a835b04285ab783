"""A call of a language model, and on whose behalf it is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from bloxserver.clients.model_options import NO_OPTIONS, ModelOptions
from bloxserver.plans import Plan

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage
    from pydantic_ai.tools import ToolDefinition

    from bloxserver.llm.budgets import Budget


@dataclass(frozen=True, slots=True)
class Quota:
    """The calls that a user may make in a minute: the limit of their plan, and what remains of it."""

    limit: int
    remaining: int
    reset_seconds: int


@dataclass(slots=True)
class AdmissionReport:
    """How a call was admitted. The quota is None if the call used nothing of it."""

    quota: Quota | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """The user whose limits and keys apply, and the part of an execution that makes the call."""

    user_id: UUID
    tier: str
    plan: Plan
    flow_id: UUID | None = None
    execution_id: UUID | None = None
    step_id: UUID | None = None
    budgets: Sequence[Budget] = ()
    report: AdmissionReport | None = None
    """Filled when the call is admitted."""


@dataclass(frozen=True, slots=True)
class ModelCall:
    """What is sent to a model. `model` may be an alias; None is the default model.

    `cache` is whether the response may be that of an equal request. `input_tokens` are sent beside the messages.
    """

    messages: Sequence[ModelMessage]
    model: str | None = None
    tools: Sequence[ToolDefinition] = ()
    temperature: float | None = None
    max_tokens: int | None = None
    cache: bool = True
    options: ModelOptions = NO_OPTIONS
    input_tokens: int = 0
