from __future__ import annotations

from typing import Any
from uuid import UUID

from pydantic import Field

from bloxserver.api.examples import ORGANISM_YAML
from bloxserver.api.large_values import LongText, MaybeRaw
from bloxserver.api.schemas.base import RequestModel
from bloxserver.clock import UtcTime
from bloxserver.json_models import CamelModel
from bloxserver.models.enums import FlowStatus
from bloxserver.organism.react_flow import CanvasState, StoredCanvas


class FlowSummary(CamelModel):
    """A flow as an item of a list."""

    id: UUID
    name: str
    description: str | None
    status: FlowStatus
    updated_at: UtcTime


class Flow(CamelModel):
    """A workflow: its definition, its canvas and its status."""

    id: UUID
    user_id: UUID
    name: str
    description: str | None
    organism_yaml: LongText
    canvas_state: MaybeRaw[StoredCanvas | None]
    status: FlowStatus
    active_version: int | None = Field(
        description="The version that the last start activated; null before the first start."
    )
    latest_version: int | None = Field(description="The number of the newest version.")
    container_id: str | None = Field(description="Kept for compatibility. BloxServer does not set it.")
    error_message: str | None = Field(description="Why the last start failed, with line and column.")
    created_at: UtcTime
    updated_at: UtcTime


class CreateFlowRequest(RequestModel):
    """A new flow."""

    name: str = Field(min_length=1, max_length=100, examples=["Order intake"])
    description: str | None = Field(None, max_length=500)
    organism_yaml: str | None = Field(
        None, description="The definition. If absent, the flow gets the default definition.", examples=[ORGANISM_YAML]
    )


class UpdateFlowRequest(RequestModel):
    """Changes of a flow. An absent member is not changed; null clears `description` and `canvasState` only."""

    name: str | None = Field(None, min_length=1, max_length=100, examples=["Order intake"])
    description: str | None = Field(None, max_length=500)
    organism_yaml: str | None = None
    canvas_state: MaybeRaw[CanvasState | None] = None

    _CLEARED_BY_NULL = frozenset({"description", "canvas_state"})

    def changes(self) -> dict[str, Any]:
        """The columns to write: the members that were sent, without a null that means no change."""
        sent = self.sent().items()
        return {name: value for name, value in sent if value is not None or name in self._CLEARED_BY_NULL}
