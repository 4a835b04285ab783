"""Definitions in JSON bodies."""

from __future__ import annotations

import json

from bloxserver.errors import Unprocessable

NAMES = ("organismYaml", "organism_yaml")


def definition_of_json(body: bytes) -> bytes | None:
    """The definition in a JSON body: the `organismYaml` of an object, or the body itself. Raises `Unprocessable`."""
    try:
        value = json.loads(body)
    # JSON is YAML: the YAML loader reports the problem with its line and column.
    except (ValueError, RecursionError):
        return body or None
    if not isinstance(value, dict) or (value and value.keys().isdisjoint(NAMES)):
        return body
    text = next((value[name] for name in NAMES if name in value), None)
    if text is not None and not isinstance(text, str):
        raise Unprocessable({"body.organismYaml": "Input should be a valid string"})
    return None if text is None else text.encode(errors="surrogatepass")
