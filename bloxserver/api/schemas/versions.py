from __future__ import annotations

from pydantic import Field

from bloxserver.clock import UtcTime
from bloxserver.json_models import CamelModel
from bloxserver.organism.react_flow import StoredCanvas


class FlowVersionSummary(CamelModel):
    number: int = Field(description="Counts from 1 in each flow.")
    created_at: UtcTime
    active: bool = Field(description="Whether the last start of the flow armed this version.")
    latest: bool


class FlowVersion(FlowVersionSummary):
    """A definition of a flow as it was saved."""

    organism_yaml: str
    canvas_state: StoredCanvas | None
