"""The state of a React Flow canvas, as clients send it and as it is stored."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypedDict

from bloxserver.json_models import CamelModel

Coordinate = Annotated[float, Field(allow_inf_nan=False, strict=True)]
"""A JSON number. Not strict, it would also accept true, false and texts."""


class CanvasPosition(TypedDict, total=False):
    """The position of a node. It may be partial; additional members are kept."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    x: Coordinate
    y: Coordinate


class CanvasViewport(CanvasPosition, total=False):
    zoom: Coordinate


class _CanvasModel(CamelModel):
    """An object of React Flow. Additional members are kept."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, from_attributes=True, extra="allow")


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
"""A stored value of another shape, written by another program, is returned unchanged."""
