"""Parameters of a request to a language model that agents do not set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from bloxserver.clients.model_errors import ModelError

if TYPE_CHECKING:
    from pydantic_ai.models import ModelRequestParameters
    from pydantic_ai.settings import ModelSettings

RESPONSE_FORMAT = "response_format"


@dataclass(frozen=True, slots=True)
class ModelOptions:
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    """Texts before which the response ends."""
    tool_choice: Literal["auto", "none", "required"] | tuple[str, ...] | None = None
    """A tuple has the names of the tools of which one must be called."""
    parallel_tool_calls: bool | None = None
    openai_parameters: Mapping[str, Any] = field(default_factory=dict)
    """Members of the request in the form of OpenAI's API, which are sent unchanged.

    Anthropic's API has only `response_format`, with a JSON Schema.
    """
    may_end_early: bool = False
    """Whether a response that reaches `max_tokens`, or that a content filter has ended, is returned and is no error."""

    def apply(
        self, settings: ModelSettings, parameters: ModelRequestParameters, *, uses_anthropic_api: bool
    ) -> ModelRequestParameters:
        """Set the options in the settings, and return the parameters with them. Raises `ModelError`."""
        if self.top_p is not None:
            settings["top_p"] = self.top_p
        if self.stop:
            settings["stop_sequences"] = list(self.stop)
        if self.tool_choice is not None:
            settings["tool_choice"] = (
                list(self.tool_choice) if isinstance(self.tool_choice, tuple) else self.tool_choice
            )
        if self.parallel_tool_calls is not None:
            settings["parallel_tool_calls"] = self.parallel_tool_calls
        if self.openai_parameters and not uses_anthropic_api:
            settings["extra_body"] = dict(self.openai_parameters)
        if self.openai_parameters and uses_anthropic_api:
            return _with_schema(parameters, self.openai_parameters)
        return parameters


NO_OPTIONS = ModelOptions()


def _with_schema(parameters: ModelRequestParameters, given: Mapping[str, Any]) -> ModelRequestParameters:
    """Return the parameters with the JSON Schema of `response_format`. Raises `ModelError` for all other members."""
    from pydantic_ai.output import OutputObjectDefinition

    unknown = given.keys() - {RESPONSE_FORMAT}
    response_format = given.get(RESPONSE_FORMAT, {})
    if unknown or response_format.get("type") != "json_schema":
        name = min(unknown, default=RESPONSE_FORMAT)
        message = f"the provider of the model does not support this value of `{name}`"
        raise ModelError("llm_rejected", message, retryable=False)
    schema = response_format["json_schema"]
    output = OutputObjectDefinition(
        json_schema=schema["schema"],
        name=schema["name"],
        description=schema.get("description"),
        strict=schema.get("strict"),
    )
    return dataclasses.replace(parameters, output_mode="native", output_object=output)
