"""Convert a canvas to a definition. Parts that a canvas cannot hold come from the existing definition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from pydantic import JsonValue

from bloxserver.blocks.registry import BlockRegistry
from bloxserver.organism.canvas import build_canvas
from bloxserver.organism.canvas_reader import CanvasListener, CanvasReading, read_canvas
from bloxserver.organism.listeners import LISTENER_KEYS
from bloxserver.organism.parse import check
from bloxserver.organism.problems import OrganismError, Path, Problem, quoted
from bloxserver.organism.rewrite import TargetListener, rewrite, same_json
from bloxserver.organism.sections import UNUSED_KEYS
from bloxserver.organism.write import write
from bloxserver.organism.yaml_loader import Document, load
from bloxserver.organism.yaml_source import Place

DEFAULT_NAME = "my-flow"


def canvas_to_yaml(canvas: Mapping[str, Any], base: str, registry: BlockRegistry) -> tuple[str, list[Problem]]:
    """Return the definition that a canvas describes, and the problems of both, in the order of that definition.

    `base` is the existing definition. Its name, limits, unknown keys and comments, and the lines of unchanged
    listeners, are kept. The path of a problem begins with `nodes` or `edges` and an id if it is on the canvas.
    """
    reading = read_canvas(canvas, registry)
    problems = list(reading.problems)
    try:
        existing = _ExistingDefinition(load(base), registry)
    except OrganismError:
        listeners: list[JsonValue] = [listener.values for listener in reading.listeners]
        text = write({"organism": {"name": DEFAULT_NAME}, "listeners": listeners})
        message = "the existing YAML cannot be read; the name, limits and comments of the flow are lost"
        problems.append(_warning((), "definition_unreadable", message, "write them into the new YAML"))
    else:
        text, more = _rewritten(reading, existing, base)
        problems += more
    return text, _locate(text, reading, problems, check(text, registry))


def changed_listeners(canvas: Mapping[str, Any], base: str, registry: BlockRegistry) -> list[str]:
    """Return the names of the listeners that differ between the canvas and the definition.

    Raises OrganismError if the definition cannot be read.
    """
    existing = _ExistingDefinition(load(base), registry)
    targets = [target for target, _ in existing.match(read_canvas(canvas, registry))]
    unchanged = [target.index for target in targets if target.index is not None and not target.changed]
    kept = set(unchanged)
    missing = [each for index, each in zip(existing.indexes, existing.listeners, strict=True) if index not in kept]
    if not missing and unchanged != sorted(unchanged):
        missing = existing.listeners
    new = [target.values for target in targets if target.index is None]
    return list(dict.fromkeys(str(values.get("name")) for values in [*(each.values for each in missing), *new]))


class _ExistingDefinition:
    """The listeners of the existing definition, as a canvas shows them."""

    def __init__(self, document: Document, registry: BlockRegistry) -> None:
        listeners = document.value.get("listeners")
        self.document = document
        items = listeners if isinstance(listeners, list) else []
        self.indexes = [index for index, item in enumerate(items) if isinstance(item, dict)]
        self.values = [item for item in items if isinstance(item, dict)]
        self.listeners = read_canvas(build_canvas(self.values, registry), registry).listeners
        for listener, values in zip(self.listeners, self.values, strict=True):
            # On a canvas, `label` is the title of the node and not a key of the listener.
            listener.values |= {"label": values["label"]} if values.get("label") is not None else {}

    def match(self, reading: CanvasReading) -> list[tuple[TargetListener, list[str]]]:
        """Return the listeners of the canvas, each with the unknown keys of its node's data."""
        indexes = self._indexes_of(reading)
        return [self._completed(*pair) for pair in zip(reading.listeners, indexes, strict=True)]

    def _indexes_of(self, reading: CanvasReading) -> list[int | None]:
        """Find the existing listener for each listener of the canvas: by node id, then by name."""
        ids = {listener.node: index for index, listener in enumerate(self.listeners)}
        names = {str(listener.values["name"]): index for index, listener in reversed(list(enumerate(self.listeners)))}
        by_id = [ids.get(listener.node) for listener in reading.listeners]
        taken = {index for index in by_id if index is not None}
        matches: list[int | None] = []
        for listener, index in zip(reading.listeners, by_id, strict=True):
            if index is None:
                index = names.get(str(listener.values["name"]))
                index = None if index in taken else index
                taken |= {index} if index is not None else set()
            matches.append(index)
        return matches

    def _completed(self, listener: CanvasListener, index: int | None) -> tuple[TargetListener, list[str]]:
        old = self.listeners[index].values if index is not None else {}
        values = dict(listener.values)
        if "description" not in values and "description" in old:
            values["description"] = old["description"]
        if "handler" not in values and "prompt" not in values:
            values |= {key: old[key] for key in ("handler", "prompt") if key in old}
        unknown = [key for key in values if not _is_known(key) and key not in old]
        for key in unknown:
            del values[key]
        values |= {key: value for key, value in old.items() if not _is_known(key) and key not in values}
        if index is not None and same_json(values, old):
            return TargetListener(self.values[index], self.indexes[index], changed=False), unknown
        return TargetListener(values, None if index is None else self.indexes[index], changed=True), unknown


def _is_known(key: str) -> bool:
    return key in LISTENER_KEYS or any(fnmatchcase(key, pattern) for pattern in UNUSED_KEYS)


def _warning(path: Path, code: str, message: str, hint: str) -> Problem:
    return Problem(1, 1, code, message, hint, severity="warning", path=path)


def _rewritten(reading: CanvasReading, existing: _ExistingDefinition, base: str) -> tuple[str, list[Problem]]:
    problems: list[Problem] = []
    completed = existing.match(reading)
    for listener, (_, unknown) in zip(reading.listeners, completed, strict=True):
        if unknown:
            keys = ", ".join(map(quoted, unknown))
            message = f"the data of {quoted(listener.node)} has members that are not keys of a listener: {keys}"
            hint = "they stay on the canvas only; put the settings of a block into config"
            problems.append(_warning(("nodes", listener.node), "unknown_key", message, hint))
    rewritten = rewrite(base, existing.document, [target for target, _ in completed])
    hint = "copy them into the new YAML"
    for index in rewritten.lost_comments:
        node = reading.listeners[index].node
        message = f"the comments in {quoted(node)} are lost, because it has changed"
        problems.append(_warning(("nodes", node), "comments_lost", message, hint))
    if rewritten.lost_all:
        message = "the comments are lost, because the existing YAML could not be edited in place"
        problems.append(_warning((), "comments_lost", message, hint))
    return rewritten.text, problems


def _locate(text: str, reading: CanvasReading, found: Sequence[Problem], checked: Sequence[Problem]) -> list[Problem]:
    """Add the places in the new text to the problems of the canvas, and the canvas paths to those of the text."""
    try:
        document = load(text)
    except OrganismError:
        return [*found, *checked]
    numbers: dict[Path, int] = {}
    for number, listener in enumerate(reading.listeners):
        numbers[("nodes", listener.node)] = number
        numbers |= {("edges", edge): number for edge in listener.edges}
    placed: list[Problem] = []
    for problem in found:
        number = numbers.get(problem.path[:2], -1)
        place = document.place_of(("listeners", number)) if number >= 0 else Place(1, 1)
        placed.append(replace(problem, line=place.line, column=place.column))
    on_canvas = [replace(problem, path=_canvas_path(problem.path, reading, document)) for problem in checked]
    return sorted([*placed, *on_canvas], key=lambda problem: (problem.line, problem.column))


def _canvas_path(path: Path, reading: CanvasReading, document: Document) -> Path:
    """Return the canvas path for a path of the text; a value that is not on the canvas keeps its path."""
    if len(path) < 2 or path[0] != "listeners" or not isinstance(path[1], int):
        return path
    listener = reading.listeners[path[1]]
    if path[2:3] != ("peers",):
        return ("nodes", listener.node, "data", *path[2:])
    written = document.value.get("listeners")
    item = written[path[1]] if isinstance(written, list) else None
    peers = item.get("peers") if isinstance(item, dict) else None
    number = path[3] if len(path) > 3 else None
    # Peers beyond the edges come from the existing definition and are not on the canvas.
    if isinstance(peers, list) and len(peers) == len(listener.edges) and isinstance(number, int):
        return ("edges", listener.edges[number], *(("data", *path[4:]) if path[4:] else ()))
    return ("nodes", listener.node)
