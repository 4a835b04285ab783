from __future__ import annotations

from pydantic import Field

from bloxserver.api.large_values import LongText, MaybeRaw
from bloxserver.clock import UtcTime
from bloxserver.json_models import CamelModel
from bloxserver.organism.react_flow import StoredCanvas


class FlowVersionSummary(CamelModel):
    """A version as an item of a list."""

    number: int = Field(description="The number, from 1 in each flow.")
    created_at: UtcTime
    active: bool = Field(description="Whether the last start of the flow activated this version.")
    latest: bool = Field(description="Whether this is the newest version.")


class FlowVersion(FlowVersionSummary):
    """A saved definition of a flow."""

    organism_yaml: LongText
    canvas_state: MaybeRaw[StoredCanvas | None]
