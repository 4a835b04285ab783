"""A canvas as a definition. What a canvas does not hold is taken over from the definition that there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from bloxserver.blocks.registry import BlockRegistry
from bloxserver.organism.canvas import draw
from bloxserver.organism.drawing import Drawing, Drawn, read_canvas
from bloxserver.organism.listeners import LISTENER_KEYS
from bloxserver.organism.parse import check
from bloxserver.organism.problems import OrganismError, Path, Problem, quoted
from bloxserver.organism.rewrite import Wanted, rewrite, same_json
from bloxserver.organism.sections import UNUSED_KEYS
from bloxserver.organism.write import write
from bloxserver.organism.yaml_loader import Document, load
from bloxserver.organism.yaml_source import Place

NAME_OF_NONE = "my-flow"


def derive(canvas: Mapping[str, Any], base: str, registry: BlockRegistry) -> tuple[str, list[Problem]]:
    """The definition that a canvas means, and what is wrong with either, in the order of that definition.

    `base` is the definition that there is: its name and limits, its unknown keys, its comments and the lines of what
    did not change are taken over. Paths begin with `nodes` or `edges` and an id where the canvas is to be changed.
    """
    drawing = read_canvas(canvas, registry)
    problems = list(drawing.problems)
    try:
        present = _Present(load(base), registry)
    except OrganismError:
        text = write({"organism": {"name": NAME_OF_NONE}, "listeners": [drawn.values for drawn in drawing.listeners]})
        message = "the YAML that there is cannot be read: name, limits and comments of the flow begin anew"
        problems.append(_warning((), "definition_unreadable", message, "write them into the new YAML"))
    else:
        text, more = _rewritten(drawing, present, base)
        problems += more
    return text, _in_place(text, drawing, problems, check(text, registry))


def differences(canvas: Mapping[str, Any], base: str, registry: BlockRegistry) -> list[str]:
    """The names of the listeners of which the canvas does not say the same as the definition.

    Raises OrganismError where the definition cannot be read.
    """
    present = _Present(load(base), registry)
    drawing = read_canvas(canvas, registry)
    wanted = [listener for listener, _ in present.recover(drawing)]
    kept = [listener.index for listener in wanted if listener.index is not None and not listener.changed]
    same = set(kept)
    gone = [drawn for index, drawn in zip(present.indexes, present.drawn, strict=True) if index not in same]
    if not gone and kept != sorted(kept):
        gone = present.drawn
    new = [listener.values for listener in wanted if listener.index is None]
    return list(dict.fromkeys(str(values.get("name")) for values in [*(drawn.values for drawn in gone), *new]))


class _Present:
    """The listeners of the definition that there is."""

    def __init__(self, document: Document, registry: BlockRegistry) -> None:
        listeners = document.value.get("listeners")
        self.document = document
        items = listeners if isinstance(listeners, list) else []
        self.indexes = [index for index, item in enumerate(items) if isinstance(item, dict)]
        self.values = [item for item in items if isinstance(item, dict)]
        self.drawn = read_canvas(draw(self.values, registry), registry).listeners
        for drawn, values in zip(self.drawn, self.values, strict=True):
            # On a canvas it is no key but what is shown.
            drawn.values |= {"label": values["label"]} if values.get("label") is not None else {}

    def recover(self, drawing: Drawing) -> list[tuple[Wanted, list[str]]]:
        """The listeners that are drawn, each with the keys in its data that no listener has."""
        return [
            self._completed(drawn, index) for drawn, index in zip(drawing.listeners, self._match(drawing), strict=True)
        ]

    def _match(self, drawing: Drawing) -> list[int | None]:
        """Which of the listeners that there are each of the drawn ones is: that of its id, else that of its name."""
        ids = {drawn.node: index for index, drawn in enumerate(self.drawn)}
        names = {str(drawn.values["name"]): index for index, drawn in reversed(list(enumerate(self.drawn)))}
        by_id = [ids.get(drawn.node) for drawn in drawing.listeners]
        taken = {index for index in by_id if index is not None}
        matches: list[int | None] = []
        for drawn, index in zip(drawing.listeners, by_id, strict=True):
            if index is None:
                index = names.get(str(drawn.values["name"]))
                index = None if index in taken else index
                taken |= {index} if index is not None else set()
            matches.append(index)
        return matches

    def _completed(self, drawn: Drawn, index: int | None) -> tuple[Wanted, list[str]]:
        there = self.drawn[index].values if index is not None else {}
        values = dict(drawn.values)
        if "description" not in values and "description" in there:
            values["description"] = there["description"]
        if "handler" not in values and "prompt" not in values:
            values |= {key: there[key] for key in ("handler", "prompt") if key in there}
        unknown = [key for key in values if not _is_known(key) and key not in there]
        for key in unknown:
            del values[key]
        values |= {key: value for key, value in there.items() if not _is_known(key) and key not in values}
        if index is not None and same_json(values, there):
            return Wanted(self.values[index], self.indexes[index], changed=False), unknown
        return Wanted(values, None if index is None else self.indexes[index], changed=True), unknown


def _is_known(key: str) -> bool:
    return key in LISTENER_KEYS or any(fnmatchcase(key, pattern) for pattern in UNUSED_KEYS)


def _warning(path: Path, code: str, message: str, hint: str) -> Problem:
    return Problem(1, 1, code, message, hint, severity="warning", path=path)


def _rewritten(drawing: Drawing, present: _Present, base: str) -> tuple[str, list[Problem]]:
    problems: list[Problem] = []
    completed = present.recover(drawing)
    for drawn, (_, unknown) in zip(drawing.listeners, completed, strict=True):
        if unknown:
            keys = ", ".join(map(quoted, unknown))
            message = f"{keys} in the data of {quoted(drawn.node)} cannot be expressed: no key of a listener"
            hint = "it stays on the canvas; settings of a block go into config"
            problems.append(_warning(("nodes", drawn.node), "unknown_key", message, hint))
    rewritten = rewrite(base, present.document, [wanted for wanted, _ in completed])
    hint = "copy them into the new YAML by hand"
    for index in rewritten.uncommented:
        node = drawing.listeners[index].node
        message = f"the comments in {quoted(node)} are lost: it has changed"
        problems.append(_warning(("nodes", node), "comments_lost", message, hint))
    if rewritten.all_lost:
        message = "the comments are lost: the YAML that there is could not be changed in place"
        problems.append(_warning((), "comments_lost", message, hint))
    return rewritten.text, problems


def _in_place(text: str, drawing: Drawing, found: Sequence[Problem], checked: Sequence[Problem]) -> list[Problem]:
    """Problems of the canvas put where the new text has what they are about; those of the text told on the canvas."""
    try:
        document = load(text)
    except OrganismError:
        return [*found, *checked]
    numbers: dict[Path, int] = {}
    for number, drawn in enumerate(drawing.listeners):
        numbers[("nodes", drawn.node)] = number
        numbers |= {("edges", edge): number for edge in drawn.edges}
    placed: list[Problem] = []
    for problem in found:
        number = numbers.get(problem.path[:2], -1)
        place = document.place_of(("listeners", number)) if number >= 0 else Place(1, 1)
        placed.append(replace(problem, line=place.line, column=place.column))
    on_canvas = [replace(problem, path=_canvas_path(problem.path, drawing, document)) for problem in checked]
    return sorted([*placed, *on_canvas], key=lambda problem: (problem.line, problem.column))


def _canvas_path(path: Path, drawing: Drawing, document: Document) -> Path:
    """Where on the canvas a value of the text is; what is not there keeps its path."""
    if len(path) < 2 or path[0] != "listeners" or not isinstance(path[1], int):
        return path
    drawn = drawing.listeners[path[1]]
    if path[2:3] != ("peers",):
        return ("nodes", drawn.node, "data", *path[2:])
    written = document.value.get("listeners")
    listener = written[path[1]] if isinstance(written, list) else None
    peers = listener.get("peers") if isinstance(listener, dict) else None
    number = path[3] if len(path) > 3 else None
    # What the text has beyond the edges was there before, and is not on the canvas.
    if isinstance(peers, list) and len(peers) == len(drawn.edges) and isinstance(number, int):
        return ("edges", drawn.edges[number], *(("data", *path[4:]) if path[4:] else ()))
    return ("nodes", drawn.node)
