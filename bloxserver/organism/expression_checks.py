"""Checks of expressions and placeholders against the other listeners: names of listeners, and members of their answers.

They are warnings where a run can be right all the same: a trigger can start at any listener.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import NamedTuple

from pydantic import JsonValue

from bloxserver.blocks import templates
from bloxserver.blocks.cel import nodes
from bloxserver.blocks.cel.nodes import Node
from bloxserver.blocks.expressions import compile_expression
from bloxserver.blocks.names import CONDITION_NAMES, MESSAGE_ROOTS
from bloxserver.blocks.placeholder_syntax import path_of
from bloxserver.blocks.shapes import ANYTHING, Shape, object_shape
from bloxserver.organism.flow_graph import FlowGraph
from bloxserver.organism.model import Listener, Organism
from bloxserver.organism.problems import Path, quoted
from bloxserver.organism.sections import ProblemReport

FACTS = {
    "trigger": object_shape("type", "name", "method", "headers", "query", "contentType", "firedAt", "scheduledFor"),
    "execution": object_shape("id", "url", "startedAt", "retryOf"),
}
REQUIRED_PARTS = 2


class Use(NamedTuple):
    """A path that a text refers to. A guarded one may be missing: the text tests it with `has` or `default`."""

    at: Path
    path: tuple[str, ...]
    is_guarded: bool


def check_expressions(organism: Organism, report: ProblemReport) -> None:
    """Report uses of answers that do not exist, or that may not exist when the listener runs."""
    graph = FlowGraph(organism)
    checks = _Checks(organism, graph, report)
    for number, listener in enumerate(organism.listeners):
        message = graph.message_shape(listener.name)
        for use in _uses_in_config(listener, report.document.value, number):
            checks.check(listener, use, message if listener.for_each is None else ANYTHING)
        if listener.for_each is not None:
            program = compile_expression(listener.for_each, MESSAGE_ROOTS).program
            for use in _uses_of(program, ("listeners", number, "for_each")):
                checks.check(listener, use, message)
        for use, on in _uses_in_peers(report.document.value, number):
            checks.check(listener, use, message if on == "error" else graph.answer_shape(listener.name), after=on)


class _Checks:
    def __init__(self, organism: Organism, graph: FlowGraph, report: ProblemReport) -> None:
        self._organism = organism
        self._graph = graph
        self._report = report

    def check(self, listener: Listener, use: Use, payload: Shape, after: str | None = None) -> None:
        """Check a use. `after` is the kind of peer whose condition contains it; None for the config."""
        root, *members = use.path
        if root == "steps" and members:
            self._check_step(listener, use, after)
        if root == "resume" and members:
            self._check_wait(use)
        shape = self._shape(root, members, payload)
        inner = members[1:] if root in ("steps", "resume") else members
        missing = None if use.is_guarded else shape.missing(inner)
        if missing is not None:
            name, known = missing
            owner = ".".join(use.path[: len(use.path) - len(inner) + list(inner).index(name)])
            nearest = get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"it has {', '.join(known) or 'no members'}"
            self._warn(use, "unknown_member", f"{owner} has no member {quoted(name)}", hint)

    def _shape(self, root: str, members: Sequence[str], payload: Shape) -> Shape:
        if root == "payload":
            return payload
        if root == "steps":
            known = bool(members) and self._organism.has(members[0])
            return self._graph.answer_shape(members[0]) if known else ANYTHING
        if root == "resume":
            return object_shape("url") if members else ANYTHING
        return FACTS.get(root, ANYTHING)

    def _check_step(self, listener: Listener, use: Use, after: str | None) -> None:
        name = use.path[1]
        if not self._organism.has(name):
            nearest = get_close_matches(name, [other.name for other in self._organism.listeners], n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "write steps and the name of a listener"
            self._error(use, "unknown_step", f"there is no listener {quoted(name)}", hint)
        elif name == listener.name and after == "answer":
            return
        elif not self._graph.precedes(name, listener.name):
            message = f"{quoted(name)} does not come before {quoted(listener.name)}, so it has no answer there"
            self._error(use, "unknown_step", message, "refer to a listener from which this one is reached")
        elif not use.is_guarded and not self._graph.always_precedes(name, listener.name):
            message = f"{quoted(name)} may not have answered before {quoted(listener.name)}"
            hint = f"test it first: has(steps.{name}) ? … : …, or default(steps.{name}, …)"
            self._warn(use, "step_may_be_missing", message, hint)

    def _check_wait(self, use: Use) -> None:
        name = use.path[1]
        if name not in self._organism.waits:
            nearest = get_close_matches(name, self._organism.waits, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "write resume and the name of a wait.webhook listener"
            self._error(use, "unknown_wait", f"{quoted(name)} does not wait for a call", hint)

    def _error(self, use: Use, code: str, message: str, hint: str) -> None:
        place = self._report.document.place_within(use.at, ".".join(use.path[:REQUIRED_PARTS]))
        self._report.error(use.at, code, message, hint, place=place)

    def _warn(self, use: Use, code: str, message: str, hint: str) -> None:
        place = self._report.document.place_within(use.at, ".".join(use.path))
        self._report.warning(use.at, code, message, hint, place=place)


def _uses_in_config(listener: Listener, document: JsonValue, number: int) -> Iterator[Use]:
    written = _at(document, ("listeners", number))
    key = "config" if isinstance(written, dict) and written.get("config") is not None else "tool_config"
    for member in sorted(listener.block.templates | listener.block.rendered):
        value = listener.given_config.get(member)
        for inner, placeholder in templates.located_placeholders(value):
            at: Path = ("listeners", number, key, member, *inner)
            if placeholder.expression is None:
                yield Use(at, placeholder.path, False)
            else:
                yield from _uses_of(placeholder.expression.program, at)
    for pattern in listener.block.expressions:
        for inner, text in _texts_at(listener.given_config, pattern.split(".")):
            yield from _uses_of(compile_expression(text).program, ("listeners", number, key, *inner))


def _uses_in_peers(document: JsonValue, number: int) -> Iterator[tuple[Use, str]]:
    peers = _at(document, ("listeners", number, "peers"))
    for index, peer in enumerate(peers if isinstance(peers, list) else []):
        when = peer.get("when") if isinstance(peer, dict) else None
        if isinstance(peer, dict) and isinstance(when, str):
            on = "error" if peer.get("on") == "error" else "answer"
            program = compile_expression(when, CONDITION_NAMES[on]).program
            for use in _uses_of(program, ("listeners", number, "peers", index, "when")):
                yield use, on


def _uses_of(program: Node, at: Path) -> Iterator[Use]:
    tested = list(_tested(program))
    for path in _paths(program, frozenset()):
        yield Use(at, path, any(path[: len(guard)] == guard for guard in tested))


def _tested(node: Node) -> Iterator[tuple[str, ...]]:
    """Yield the paths that an expression tests."""
    match node:
        case nodes.Has() if (operand := path_of(node.operand)) is not None:
            yield (*operand, node.field)
        case nodes.Default():
            yield from _paths(node.operand, frozenset())
    for child in node.children:
        yield from _tested(child)


def _paths(node: Node, variables: frozenset[str]) -> Iterator[tuple[str, ...]]:
    """Yield the paths of the values that an expression reads. The variables of macros are not names."""
    path = path_of(node)
    if path is not None:
        if path[0] not in variables:
            yield path
        return
    if isinstance(node, nodes.Macro):
        yield from _paths(node.over, variables)
        for body in node.bodies:
            yield from _paths(body, variables | {node.variable})
        return
    for child in node.children:
        yield from _paths(child, variables)


def _at(value: JsonValue, path: Sequence[str | int]) -> JsonValue:
    for step in path:
        if isinstance(value, dict) and isinstance(step, str):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return None
    return value


def _texts_at(value: JsonValue, pattern: Sequence[str], path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Yield the texts at a path with `*` for each item of a list, and their paths."""
    if not pattern:
        if isinstance(value, str):
            yield path, value
    elif pattern[0] == "*" and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts_at(item, pattern[1:], (*path, index))
    elif isinstance(value, dict) and pattern[0] in value:
        yield from _texts_at(value[pattern[0]], pattern[1:], (*path, pattern[0]))
