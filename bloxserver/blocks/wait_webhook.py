"""`wait.webhook`: waits for a call of its URL and answers with the body of the call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, RootModel, ValidationInfo, model_validator

from bloxserver.blocks import templates
from bloxserver.blocks.base import CHECKED, Awaited, Block, BlockConfig, BlockContext
from bloxserver.blocks.shapes import ANYTHING, Shape, object_shape
from bloxserver.wait_forms import BUTTON, RESPONDER

MAX_FIELDS = 20
MAX_BUTTONS = 10
MAX_OPTIONS = 100
MAX_QUESTION = 10_000


class WaitWebhookPayload(RootModel[JsonValue]):
    """Any JSON value."""


class WaitField(BlockConfig):
    """A field of the form."""

    name: str = Field(pattern="^[A-Za-z_][A-Za-z0-9_]{0,63}$", description="The member of the answer.")
    label: str | None = Field(None, max_length=200, description="The text at the field. Default: its name.")
    type: Literal["text", "number", "boolean", "select"] = Field("text", description="The type of the value.")
    options: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(
        (), max_length=MAX_OPTIONS, description="The values of a `select`."
    )
    required: bool = Field(False, description="Whether a value must be given. A required `boolean` must be true.")

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        if self.name in (BUTTON, RESPONDER):
            raise ValueError(f"{self.name} is not available as the name of a field")
        if bool(self.options) != (self.type == "select"):
            raise ValueError("a select has options, and no other type has")
        return self


class WaitButton(BlockConfig):
    """A button that sends the form."""

    value: str = Field(min_length=1, max_length=64, description="The member `button` of the answer.")
    label: str | None = Field(None, max_length=200, description="The text on the button. Default: its value.")


def _checked(template: str, info: ValidationInfo) -> str:
    if info.context != CHECKED:
        templates.check(template)
    return template


class WaitWebhookConfig(BlockConfig):
    question: Annotated[str, AfterValidator(_checked)] = Field(
        "",
        max_length=MAX_QUESTION,
        description="The text that a person sees who opens the URL. Placeholders are replaced when the wait begins.",
    )
    fields: tuple[WaitField, ...] = Field((), max_length=MAX_FIELDS, description="The fields of the form.")
    buttons: tuple[WaitButton, ...] = Field(
        (), max_length=MAX_BUTTONS, description="The buttons of the form. Default: one that has no value."
    )

    @model_validator(mode="after")
    def _check_unique(self) -> Self:
        _require_unique("fields", [field.name for field in self.fields])
        _require_unique("buttons", [button.value for button in self.buttons])
        return self

    @property
    def has_form(self) -> bool:
        """Whether the body of a call must have the members of a form."""
        return bool(self.fields or self.buttons)


def _require_unique(kind: str, names: Sequence[str]) -> None:
    if len({*names}) < len(names):
        raise ValueError(f"two {kind} have the same name")


def _answer_shape(config: Any, message: Shape) -> Shape:
    if not config.has_form:
        return ANYTHING
    return object_shape(*(field.name for field in config.fields), *([BUTTON] if config.buttons else []))


async def handle_wait_webhook(payload: WaitWebhookPayload, config: WaitWebhookConfig, context: BlockContext) -> Awaited:
    return Awaited(templates.render_text(config.question, context.scope(payload.root), context.budget))


block = Block(
    name="wait.webhook",
    description="Waits for a call of its URL, by a person or a program, and answers with the body of the call.",
    payload=WaitWebhookPayload,
    config=WaitWebhookConfig,
    answer_shape=_answer_shape,
    handler=handle_wait_webhook,
    rendered=frozenset({"question"}),
    awaits_call=True,
    example={
        "config": {
            "question": "Pay {{ payload.amount }} EUR to {{ payload.supplier }}?",
            "fields": [{"name": "comment", "label": "Comment", "type": "text"}],
            "buttons": [{"value": "approve", "label": "Approve"}, {"value": "reject", "label": "Reject"}],
        },
        "payload": {"amount": 120, "supplier": "Ada"},
    },
)
