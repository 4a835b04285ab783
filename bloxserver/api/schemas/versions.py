from __future__ import annotations

from pydantic import Field

from bloxserver.api.schemas.base import CamelModel, UtcTime
from bloxserver.api.schemas.flows import StoredCanvas


class FlowVersionSummary(CamelModel):
    number: int = Field(description="Counts from 1 in each flow.")
    created_at: UtcTime
    active: bool = Field(description="Whether the last start of the flow armed this version.")
    latest: bool


class FlowVersion(FlowVersionSummary):
    """A definition of a flow as it was saved."""

    organism_yaml: str
    canvas_state: StoredCanvas | None
