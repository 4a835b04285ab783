"""Work on definitions for a process of its own: bytes to bytes. See `bloxserver.isolation`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from bloxserver.blocks.registry import get_registry
from bloxserver.isolation.parts import join_parts, split_parts
from bloxserver.organism.agent_uses import agent_uses
from bloxserver.organism.canvas import yaml_to_canvas
from bloxserver.organism.canvas_to_yaml import canvas_to_yaml, changed_listeners
from bloxserver.organism.compiled import compile_organism
from bloxserver.organism.messages import problems_to_json, requirements_to_json
from bloxserver.organism.parse import Reading, parse, read
from bloxserver.organism.problems import OrganismError
from bloxserver.organism.secret_values import invalid_values
from bloxserver.organism.yaml_loader import decode


def check_definition(request: bytes) -> bytes:
    """Read a definition. Return its problems, and its requirements on the installation."""
    return _json(_checked(read_definition(request)))


def check_secret_values(request: bytes) -> bytes:
    """Return the problems of a definition's values with the values of its secrets."""
    given = json.loads(request)
    reading = read_definition(given["definition"].encode())
    return _json({"problems": problems_to_json(invalid_values(reading.requirements, given["secrets"]))})


def compile_definition(request: bytes) -> bytes:
    """Return a valid definition in the form that executions load, or the problems of an invalid one.

    Its snippets are not checked: that starts a process for each, and was done when the definition was stored.
    """
    try:
        organism = parse(decode(request), get_registry())
    except OrganismError as error:
        return _json({"problems": problems_to_json(error.problems)})
    return _json({"organism": compile_organism(organism)})


def estimate_definition(request: bytes) -> bytes:
    """Return what the agents of a valid definition may use, and its limits, or the problems of an invalid one."""
    try:
        organism = parse(decode(request), get_registry())
    except OrganismError as error:
        return _json({"problems": problems_to_json(error.problems)})
    names = ("max_iterations", "max_tokens", "max_cost_usd")
    execution = {name: getattr(organism.execution, name) for name in names}
    return _json({"uses": [asdict(use) for use in agent_uses(organism)], "execution": execution})


def derive_canvas(request: bytes) -> bytes:
    """Return the problems of a definition, and its canvas."""
    canvas, problems = yaml_to_canvas(request.decode(), get_registry())
    return join_parts([_json(problems_to_json(problems)), _json(canvas)])


def compare_canvas(request: bytes) -> bytes:
    """Return the names of the listeners in which a canvas and a definition differ, or the definition's problems."""
    canvas, definition = _canvas_and_definition(request)
    try:
        return _json({"names": changed_listeners(canvas, definition, get_registry()), "problems": []})
    except OrganismError as error:
        return _json({"names": [], "problems": problems_to_json(error.problems)})


def derive_definition(request: bytes) -> bytes:
    """Return the problems of a canvas, and the definition that it describes.

    The definition keeps what the earlier definition has beyond the canvas.
    """
    canvas, definition = _canvas_and_definition(request)
    registry = get_registry()
    if canvas is None:
        canvas, _ = yaml_to_canvas(definition, registry)
    text, problems = canvas_to_yaml(canvas, definition, registry)
    return join_parts([_json(problems_to_json(problems)), text.encode(errors="surrogatepass")])


def read_definition(definition: bytes) -> Reading:
    """Read a definition. A text that is not YAML has no organism, and its problems."""
    try:
        return read(decode(definition), get_registry())
    except OrganismError as error:
        return Reading(None, error.problems, ())


def _canvas_and_definition(request: bytes) -> tuple[Any, str]:
    canvas, definition = split_parts(request)
    return json.loads(canvas), definition.decode(errors="surrogatepass")


def _checked(reading: Reading) -> dict[str, Any]:
    return {
        "problems": problems_to_json(reading.problems),
        "requirements": requirements_to_json(reading.requirements),
    }


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
