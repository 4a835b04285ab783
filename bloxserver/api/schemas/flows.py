from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypedDict

from bloxserver.api.models.enums import FlowStatus
from bloxserver.api.schemas.base import CamelModel, RequestModel, UtcTime

ORGANISM_EXAMPLE = (
    "organism:\n  name: my-flow\nlisteners:\n  - name: echo\n    description: Answers\n    handler: echo\n"
)

Coordinate = Annotated[float, Field(allow_inf_nan=False)]


class CanvasPosition(TypedDict, total=False):
    """Where a node stands; may be partial, and keeps members that are not named here."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    x: Coordinate
    y: Coordinate


class CanvasViewport(CanvasPosition, total=False):
    zoom: Coordinate


class _CanvasModel(CamelModel):
    """React Flow objects: members that are not named here are kept."""

    model_config = ConfigDict(extra="allow")


class CanvasNode(_CanvasModel):
    id: str
    type: str | None = None
    position: CanvasPosition = Field(default_factory=lambda: CanvasPosition())
    data: dict[str, Any] = Field(default_factory=dict)


class CanvasEdge(_CanvasModel):
    id: str
    source: str
    target: str
    source_handle: str | None = None
    target_handle: str | None = None


class CanvasState(_CanvasModel):
    """The state of a React Flow canvas."""

    nodes: list[CanvasNode] = Field(default_factory=list)
    edges: list[CanvasEdge] = Field(default_factory=list)
    viewport: CanvasViewport = Field(default_factory=lambda: CanvasViewport(x=0, y=0, zoom=1))


StoredCanvas = Annotated[CanvasState | SkipJsonSchema[Any], Field(union_mode="left_to_right")]
"""What is stored may be no such state, where others wrote the row: it is shown as it is."""


class FlowSummary(CamelModel):
    id: UUID
    name: str
    description: str | None
    status: FlowStatus
    updated_at: UtcTime


class Flow(CamelModel):
    """A workflow: its definition, its canvas and how it stands."""

    id: UUID
    user_id: UUID
    name: str
    description: str | None
    organism_yaml: str
    canvas_state: StoredCanvas | None
    status: FlowStatus
    active_version: int | None = Field(description="The version that the last start armed.")
    latest_version: int | None
    container_id: str | None
    error_message: str | None = Field(description="Why the last start failed, with line and column.")
    created_at: UtcTime
    updated_at: UtcTime


class CreateFlowRequest(RequestModel):
    name: str = Field(min_length=1, max_length=100, examples=["Order intake"])
    description: str | None = Field(None, max_length=500)
    organism_yaml: str | None = Field(
        None, description="The organism; without one the flow gets the default.", examples=[ORGANISM_EXAMPLE]
    )


class UpdateFlowRequest(RequestModel):
    """What is absent stays as it is; null clears `description` and `canvasState`, and changes nothing else."""

    name: str | None = Field(None, min_length=1, max_length=100, examples=["Order intake"])
    description: str | None = Field(None, max_length=500)
    organism_yaml: str | None = None
    canvas_state: CanvasState | None = None

    _CLEARED_BY_NULL = frozenset({"description", "canvas_state"})

    def changes(self) -> dict[str, Any]:
        """The columns to write: what was sent, less a null where null means no change."""
        sent = self.model_dump(include=self.model_fields_set, by_alias=True)
        columns = {name: sent[alias] for name in self.model_fields_set if (alias := to_camel(name)) in sent}
        return {name: value for name, value in columns.items() if value is not None or name in self._CLEARED_BY_NULL}
