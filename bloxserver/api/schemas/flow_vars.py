from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, JsonValue, StringConstraints

from bloxserver.api.schemas.base import RequestModel
from bloxserver.json_models import CamelModel
from bloxserver.storable import check_storable

MAX_VARS = 100
VarName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]


def _storable(values: dict[str, JsonValue]) -> dict[str, JsonValue]:
    check_storable(values)
    return values


class FlowVars(CamelModel):
    """The variables of a flow. Expressions refer to them as `vars.NAME`. They are not secret."""

    vars: dict[str, JsonValue] = Field(description="JSON values by name.")


class SetFlowVarsRequest(RequestModel):
    """All variables of a flow."""

    vars: Annotated[dict[VarName, JsonValue], AfterValidator(_storable)] = Field(
        max_length=MAX_VARS,
        description="JSON values by name, at most 64 KiB together. Variables that are absent are deleted.",
        examples=[{"channel": "#orders", "limit": 100}],
    )
