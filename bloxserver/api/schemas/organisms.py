from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from bloxserver.api.examples import CANVAS
from bloxserver.api.large_values import LongText, MaybeRaw
from bloxserver.api.schemas.base import RequestModel
from bloxserver.json_models import CamelModel
from bloxserver.organism.problems import shortened_path
from bloxserver.organism.react_flow import CanvasState, StoredCanvas


class DefinitionProblem(CamelModel):
    """A problem of a definition. An error prevents a start of the flow; a warning does not."""

    line: int = Field(description="The line, from 1.")
    column: int = Field(description="The column in characters, from 1.")
    code: str = Field(description="Stable, in snake_case.", examples=["unknown_handler"])
    severity: Literal["error", "warning"]
    message: str = Field(description="What is wrong.", examples=['unknown handler "text.templat"'])
    hint: str = Field(description="How to fix it.", examples=['did you mean "text.template"?'])
    path: Annotated[list[str | int], AfterValidator(shortened_path)] = Field(
        description="The path to the value: keys and indexes. On a canvas: `nodes` or `edges`, and an id.",
        examples=[["listeners", 0, "handler"]],
    )


class FlowEstimate(CamelModel):
    """Upper bounds for one execution that starts at the default entry, without the flows that it calls."""

    calls: int = Field(description="Requests to language models, without those to further providers after a failure.")
    tokens: int = Field(description="Input and output tokens.")
    cost_usd: float | None = Field(description="In US dollars; null if a price is unknown.")


class Validation(CamelModel):
    """All problems of a definition, in the order of its text."""

    valid: bool = Field(description="Whether a flow with this definition can start: no problem is an error.")
    problems: list[DefinitionProblem]


class BlockDescription(CamelModel):
    """A block, which a listener names as its `handler`, or the agent, for which a listener has a `prompt`."""

    kind: Literal["block", "agent"]
    name: str
    aliases: list[str] = Field(description="Other names of the block. A name that ends in `*` is a prefix.")
    description: str
    config_schema: dict[str, Any] = Field(
        description="JSON Schema (2020-12) of `config`. `prompt`, `model`, `temperature` and `max_tokens` of an agent "
        "are members of the listener itself."
    )
    payload_schema: dict[str, Any] = Field(description="JSON Schema (2020-12) of the messages that the block accepts.")
    example: dict[str, Any] = Field(description="An example with `config` and `payload`.")
    templates: list[str] = Field(description="Members of `config` in which `{{ … }}` is replaced.")


class FlowCanvas(CamelModel):
    """The canvas of a flow."""

    canvas_state: MaybeRaw[StoredCanvas]
    derived: bool = Field(description="Whether the canvas was derived from the YAML, because none is stored.")
    problems: list[DefinitionProblem]


class DeriveRequest(RequestModel):
    """A canvas to convert."""

    canvas_state: MaybeRaw[CanvasState | None] = Field(
        None, description="The canvas. If absent, the flow's own canvas.", examples=[CANVAS]
    )


class DerivedOrganism(CamelModel):
    """The YAML definition of a canvas. It is not stored; to store it, update the flow."""

    organism_yaml: LongText
    valid: bool
    problems: list[DefinitionProblem]
