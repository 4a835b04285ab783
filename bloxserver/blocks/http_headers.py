"""Headers of requests, as configs and messages give them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, JsonValue

from bloxserver.blocks.http_bodies import media_type_of
from bloxserver.clients.http import OutgoingRequestError, check_header

FORM_TYPES = frozenset({"application/x-www-form-urlencoded", "multipart/form-data"})


def _without_null(headers: object) -> object:
    if not isinstance(headers, dict):
        return headers
    return {name: value for name, value in headers.items() if value is not None}


def _text_of(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return json.dumps(value, allow_nan=False)
    raise ValueError("must be text, a number or a boolean; null leaves the header out")


def _checked(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        try:
            # A value with placeholders is checked after they are replaced.
            check_header(name, "" if "{{" in value else value)
        except OutgoingRequestError as error:
            raise ValueError(error.message) from None
    return headers


Value = Annotated[str, BeforeValidator(_text_of, json_schema_input_type=str | float | bool | None)]
Headers = Annotated[dict[str, Value], BeforeValidator(_without_null)]
"""Headers as JSON has them: numbers and booleans become text, and null leaves a header out."""
ConfigHeaders = Annotated[Headers, AfterValidator(_checked)]
"""Headers that must be valid, too, except for values with placeholders."""


def merged(headers: Mapping[str, str], overrides: Mapping[str, str]) -> dict[str, str]:
    """Merge two sets of headers. Names are case-insensitive; the values of `overrides` take precedence."""
    overridden = {name.lower() for name in overrides}
    return {**{name: value for name, value in headers.items() if name.lower() not in overridden}, **overrides}


def set_default(headers: dict[str, str], name: str, value: str) -> None:
    """Add the header unless there is one of that name."""
    if name.lower() not in {given.lower() for given in headers}:
        headers[name] = value


def is_form(headers: Mapping[str, str]) -> bool:
    """Whether the Content-Type is a form type."""
    return _media_type(headers) in FORM_TYPES


def form_problem(headers: Mapping[str, str], body: JsonValue) -> str | None:
    """Return why the body cannot be sent with the Content-Type in `headers`. Forms are supported as text only."""
    if not is_form(headers) or body is None or isinstance(body, str):
        return None
    return (
        f"sending JSON as {_media_type(headers)} is not supported; write the body as text, like "
        '"a=1&b=2", or remove the Content-Type'
    )


def _media_type(headers: Mapping[str, str]) -> str:
    # If a header is repeated, the last one is sent.
    given = [value for name, value in headers.items() if name.lower() == "content-type"]
    return media_type_of(given[-1] if given else "")
