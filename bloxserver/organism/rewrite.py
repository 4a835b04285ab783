"""Replace the listeners in the text of a definition. Unchanged listeners and the rest of the text keep their lines."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import yaml
from pydantic import JsonValue

from bloxserver.organism import yaml_loader
from bloxserver.organism.problems import OrganismError
from bloxserver.organism.write import write, write_listener
from bloxserver.organism.yaml_loader import Document, load
from bloxserver.organism.yaml_source import Place, Source

COMMENT = re.compile(r"(?:^|\s)#")
DASH = re.compile(r" *- +")


@dataclass(frozen=True)
class TargetListener:
    """A listener of the new definition. `index` is its index in the existing definition; null: it is new."""

    values: dict[str, JsonValue]
    index: int | None
    changed: bool


class Rewritten(NamedTuple):
    """The new text. `lost_comments` has the indexes of listeners that lost comments; `lost_all` is true if
    the rest of the text lost its comments too.
    """

    text: str
    lost_comments: list[int]
    lost_all: bool = False


def rewrite(text: str, document: Document, targets: Sequence[TargetListener]) -> Rewritten:
    """Return the definition with these listeners instead of its own. `document` is the loaded `text`."""
    expected = document.value | {"listeners": [listener.values for listener in targets]}
    if same_json(document.value, expected):
        return Rewritten(text, [])
    lines = _Lines(text)
    spliced = _splice(lines, document, targets)
    if spliced is not None and _reads_as(spliced.text, expected):
        return spliced
    return Rewritten(write(expected), [], lost_all=any(map(lines.is_commented, range(len(lines.lines)))))


def _reads_as(text: str, expected: dict[str, JsonValue]) -> bool:
    try:
        read = load(text).value
    except OrganismError:
        return False
    return same_json(read, expected)


def same_json(one: JsonValue, other: JsonValue) -> bool:
    """Whether two values are equal as JSON. In Python, True equals 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


class _Lines:
    """The lines of a loaded text, and the extent of the YAML nodes in them. Lines are numbered from 0."""

    def __init__(self, text: str) -> None:
        source = Source(text if not text or text.endswith("\n") else f"{text}\n")
        text = source.text
        self.lines = source.lines()
        masked = list(text)
        self._last: dict[int, int] = {}
        for event in yaml.parse(source.parseable, Loader=yaml_loader.PARSER):
            start, end = event.start_mark, event.end_mark
            if start is None or end is None:
                continue
            if isinstance(event, yaml.ScalarEvent):
                masked[start.index : end.index] = [c if c in " \t\r\n" else "x" for c in text[start.index : end.index]]
            # The end of a block collection has no extent.
            if isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent) and end.index > start.index:
                last = end.line if end.column else end.line - 1
                self._last[start.line] = max(last, self._last.get(start.line, last))
        self._masked = Source("".join(masked)).lines()

    def last_of(self, start: int, stop: int) -> int:
        """Return the last line of the nodes that begin between `start` and `stop`."""
        return max((self._last.get(line, start) for line in range(start, stop)), default=start)

    def is_commented(self, line: int) -> bool:
        return COMMENT.search(self._masked[line]) is not None

    def text(self, start: int, stop: int) -> str:
        return "".join(self.lines[start:stop])


class _Item(NamedTuple):
    """The lines of a listener, from `start` to `stop`. The comments before it begin at `lead`."""

    lead: int
    start: int
    stop: int


def _splice(lines: _Lines, document: Document, targets: Sequence[TargetListener]) -> Rewritten | None:
    """Return the text with replaced listeners, or None unless each listener begins on its own line."""
    dash = _dash(lines, document)
    if dash is None or not targets:
        return None
    items = _items(lines, document)
    parts = [lines.text(0, items[0].lead)]
    lost_comments: list[int] = []
    for number, listener in enumerate(targets):
        item = items[listener.index] if listener.index is not None else None
        if item is not None:
            parts.append(lines.text(item.lead, item.start))
        if item is not None and not listener.changed:
            parts.append(lines.text(item.start, item.stop))
            continue
        parts.append(write_listener(listener.values, dash))
        if item is not None and any(map(lines.is_commented, range(item.start, item.stop))):
            lost_comments.append(number)
    parts.append(lines.text(items[-1].stop, len(lines.lines)))
    return Rewritten("".join(parts), lost_comments)


def _listener_places(document: Document) -> list[Place]:
    listeners = document.value.get("listeners")
    count = len(listeners) if isinstance(listeners, list) else 0
    return [document.values["listeners", index] for index in range(count)]


def _dash(lines: _Lines, document: Document) -> int | None:
    """Return the indentation of the listeners' dashes, if each dash begins a line and all have the same indentation."""
    indents = set()
    for line, column in _listener_places(document):
        before = lines.lines[line - 1][: column - 1]
        if not DASH.fullmatch(before):
            return None
        indents.add(before.index("-"))
    return indents.pop() if len(indents) == 1 else None


def _items(lines: _Lines, document: Document) -> list[_Item]:
    key = document.keys["listeners",].line
    starts = [place.line - 1 for place in _listener_places(document)]
    following = [place.line - 1 for path, place in document.keys.items() if len(path) == 1 and place.line > key]
    stops = [*starts[1:], min(following, default=len(lines.lines))]
    items: list[_Item] = []
    lead = key
    for start, stop in zip(starts, stops, strict=True):
        end = lines.last_of(start, stop) + 1
        items.append(_Item(lead, start, end))
        lead = end
    return items
