from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from bloxserver.api.schemas.base import RequestModel
from bloxserver.json_models import CamelModel
from bloxserver.organism.react_flow import CanvasState, StoredCanvas

CANVAS_EXAMPLE = {
    "nodes": [
        {
            "id": "echo",
            "type": "block",
            "position": {"x": 0, "y": 0},
            "data": {"name": "echo", "handler": "echo", "description": "Answers"},
        }
    ],
    "edges": [],
}


MAX_PATH = 400
"""Characters, about: thousands of problems under one long key are not to fill the memory."""


def _cut(path: list[str | int]) -> list[str | int]:
    longest = max(MAX_PATH // max(len(path), 1), 16)
    return [f"{key[:longest]}…" if isinstance(key, str) and len(key) > longest else key for key in path]


class DefinitionProblem(CamelModel):
    """One thing to repair in a definition. A definition with an error does not run; warnings keep it from nothing."""

    line: int = Field(description="Counts from 1.")
    column: int = Field(description="Counts characters from 1.")
    code: str = Field(description="Stable, for programs.", examples=["unknown_handler"])
    severity: Literal["error", "warning"]
    message: str = Field(examples=['unknown handler "ecko"'])
    hint: str = Field(description="What to do.", examples=['did you mean "echo"?'])
    path: Annotated[list[str | int], AfterValidator(_cut)] = Field(
        description="The way to the value: keys and indexes; `nodes` or `edges` and an id where it is on a canvas.",
        examples=[["listeners", 0, "handler"]],
    )


class Validation(CamelModel):
    """Everything that is wrong with a definition, in the order of its text."""

    valid: bool = Field(description="Whether a flow with it would start: whether no problem is an error.")
    problems: list[DefinitionProblem]


class BlockDescription(CamelModel):
    """What a listener can be: a block, which it names as its handler, or an agent, which has a prompt instead."""

    kind: Literal["block", "agent"]
    name: str
    aliases: list[str] = Field(description="Other names; one that ends in * stands for all that begin alike.")
    description: str
    config_schema: dict[str, Any] = Field(
        description="JSON Schema (2020-12) of `config`; an agent's `prompt`, `model`, `temperature` and `max_tokens` "
        "stand in the listener itself."
    )
    payload_schema: dict[str, Any] = Field(description="JSON Schema (2020-12) of the messages that it takes.")
    example: dict[str, Any] = Field(description="A `config` and a `payload`.")
    templates: list[str] = Field(description="Members of `config` whose texts may hold `{{ … }}`.")


class FlowCanvas(CamelModel):
    """A canvas for a flow, and what is to be said of it."""

    canvas_state: StoredCanvas
    derived: bool = Field(description="Whether it was made from the YAML just now, because none was stored.")
    problems: list[DefinitionProblem]


class DeriveRequest(RequestModel):
    canvas_state: CanvasState | None = Field(
        None, description="The canvas; the flow's own where it is absent.", examples=[CANVAS_EXAMPLE]
    )


class DerivedOrganism(CamelModel):
    """The YAML that a canvas means. It is stored nowhere: a PATCH of the flow does that."""

    organism_yaml: str
    valid: bool
    problems: list[DefinitionProblem]
