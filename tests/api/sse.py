"""Server-Sent Events, parsed and validated."""

from __future__ import annotations

import json
from typing import Annotated, NamedTuple

from pydantic import Field, TypeAdapter

from bloxserver.api.schemas import AgentTextEvent, ExecutionEvent, StepEvent

EVENT: TypeAdapter[ExecutionEvent | StepEvent | AgentTextEvent] = TypeAdapter(
    Annotated[ExecutionEvent | StepEvent | AgentTextEvent, Field(discriminator="event")]
)


class Event(NamedTuple):
    kind: str
    id: str | None
    data: dict[str, object]


def parse_events(text: str) -> list[Event]:
    """The events of a stream, without comments."""
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and line[0] != ":")
        if "event" in fields:
            events.append(Event(fields["event"], fields.get("id"), json.loads(fields["data"])))
    return events


def validated(event: Event) -> ExecutionEvent | StepEvent | AgentTextEvent:
    """Validate the event with its documented schema. Additional members and other formats are errors."""
    model = EVENT.validate_python({"event": event.kind, "id": event.id, "data": json.dumps(event.data)})
    assert model.data.model_dump(mode="json", by_alias=True) == event.data
    return model
