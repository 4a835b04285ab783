"""What is known of a value before a run: the members of an object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from bloxserver.blocks.cel import nodes
from bloxserver.blocks.cel.nodes import Node

MAX_DEPTH = 8


@dataclass(frozen=True)
class Shape:
    """The members of an object, or nothing if `members` is None. An object has no other members."""

    members: Mapping[str, Shape] | None = None

    def missing(self, path: Sequence[str]) -> tuple[str, Sequence[str]] | None:
        """Return the first name of a path that cannot exist, and the names that do exist in its place."""
        shape = self
        for name in path:
            if shape.members is None:
                return None
            if name not in shape.members:
                return name, [*shape.members]
            shape = shape.members[name]
        return None


ANYTHING = Shape()


def object_shape(*names: str, **shapes: Shape) -> Shape:
    """Return the shape of an object whose members `names` can be anything."""
    return Shape({**dict.fromkeys(names, ANYTHING), **shapes})


def either(shapes: Sequence[Shape]) -> Shape:
    """Return the shape of a value that has one of several shapes."""
    if not shapes or any(shape.members is None for shape in shapes):
        return ANYTHING
    names = dict.fromkeys(name for shape in shapes for name in shape.members or {})
    return Shape({name: either([_member(shape, name) for shape in shapes if _has(shape, name)]) for name in names})


def shape_of_template(template: JsonValue, depth: int = 0) -> Shape:
    """Return the shape of a rendered template."""
    if not isinstance(template, dict) or depth >= MAX_DEPTH:
        return ANYTHING
    return Shape({name: shape_of_template(value, depth + 1) for name, value in template.items()})


def shape_of_expression(node: Node, depth: int = 0) -> Shape:
    """Return the shape of the value of an expression: that of an object with constant keys."""
    if not isinstance(node, nodes.MapOf) or depth >= MAX_DEPTH:
        return ANYTHING
    members: dict[str, Shape] = {}
    for key, value in node.entries:
        if not (isinstance(key, nodes.Constant) and isinstance(key.value, str)):
            return ANYTHING
        members[key.value] = shape_of_expression(value, depth + 1)
    return Shape(members)


def _has(shape: Shape, name: str) -> bool:
    return shape.members is not None and name in shape.members


def _member(shape: Shape, name: str) -> Shape:
    return (shape.members or {}).get(name, ANYTHING)
