"""YAML from strangers, read as JSON.

One flat pass over the parser's events holds every limit before anything is built: a loader that builds as it parses
can be made to crash the process (nested brackets) or to fill its memory (aliases).
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import yaml
from pydantic import JsonValue
from yaml.events import CollectionEndEvent, CollectionStartEvent

from bloxserver.organism.problems import OrganismError, Path, Problem, quoted

MAX_BYTES = 256 * 1024
MAX_DEPTH = 64
MAX_NODES = 20_000

PARSER = yaml.CLoader if yaml.__with_libyaml__ else yaml.SafeLoader

FORBIDDEN_CHARACTER = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
UNSTORABLE_CHARACTER = re.compile("[\x00\ud800-\udfff]")

CONSTANTS = {
    **dict.fromkeys(["", "~", "null", "Null", "NULL"], None),
    **dict.fromkeys(["true", "True", "TRUE"], True),
    **dict.fromkeys(["false", "False", "FALSE"], False),
}
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
MAX_INTEGER = 20


SYNTAX_HINT = "look for a missing quote, colon or bracket, and at how far this line is indented"
SYNTAX_HINTS = {
    "mapping values are not allowed": "put quotes around a text with a colon, else indent the line like its neighbours",
    "cannot start any token": "put the text into quotes",
    "expected alphabetic or numeric character": "put the text into quotes",
    "while scanning a quoted scalar": "add the quote that ends the text",
    "unknown escape": "put the text into single quotes, where a backslash is nothing special, or write it twice",
    "parsing a flow": "add the missing comma, or the bracket that ends it",
    "block mapping": "indent all keys of a mapping alike, and let nothing follow a closing quote",
    "block collection": "indent the dashes of a list alike",
    "could not find expected ':'": "add a colon and a value, or indent the line as part of the text above it",
}


class Place(NamedTuple):
    """Where something is written; both count from 1, columns in characters."""

    line: int
    column: int


@dataclass
class Document:
    """A document as JSON values, and where each of them is written.

    `problems` are what could be stepped over: a repeated key (its first value counts), a key or number that JSON
    does not have.
    """

    value: dict[str, JsonValue] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    keys: dict[Path, Place] = field(default_factory=dict)
    values: dict[Path, Place] = field(default_factory=dict)

    def place_of(self, path: Path) -> Place:
        """Where the value is written, or the nearest one around it that is."""
        while path and path not in self.values:
            path = path[:-1]
        return self.values[path]

    def place_of_key(self, path: Path) -> Place:
        return self.keys.get(path) or self.place_of(path)


def decode(data: bytes) -> str:
    """The text of a definition that came as bytes. Raises OrganismError where they are no UTF-8."""
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = (data[: error.start].decode() + "x").splitlines()
        place = Place(len(before), len(before[-1]))
        raise _refusal(place, "yaml_syntax", "this is no text in UTF-8", "save it in the encoding UTF-8") from None


def load(text: str) -> Document:
    """Read one document whose top is a mapping. Raises OrganismError, and nothing else, whatever the text is."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        message = f"the definition has {size} bytes; at most {MAX_BYTES} are taken"
        raise _refusal(Place(1, 1), "yaml_limit", message, "make it shorter, or divide it into several flows")
    if forbidden := FORBIDDEN_CHARACTER.search(text):
        before = (text[: forbidden.start()] + "x").splitlines()
        place = Place(len(before), len(before[-1]))
        message = f"the character U+{ord(forbidden[0]):04X} is not allowed"
        raise _refusal(place, "yaml_syntax", message, "remove it; it may not be seen in an editor")
    events = _scan(text)
    if not events:
        raise _refusal(Place(1, 1), "wrong_type", "the definition is empty", 'begin with "organism:"')
    if not isinstance(events[0], yaml.MappingStartEvent):
        raise _refusal(_place(events[0]), "wrong_type", "the definition is no mapping", 'begin with "organism:"')
    return _Builder(iter(events)).document


def _refusal(place: Place, code: str, message: str, hint: str) -> OrganismError:
    return OrganismError([Problem(*place, code, message, hint)])


def _place(event: yaml.Event) -> Place:
    mark = event.start_mark
    return Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)


def _scan(text: str) -> list[yaml.Event]:
    """The events of the document's nodes, all limits held."""
    events: list[yaml.Event] = []
    documents = depth = nodes = 0
    try:
        for event in yaml.parse(text, Loader=PARSER):
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _refusal(_place(event), "yaml_limit", "a second document begins here", "remove the ---")
            elif isinstance(event, CollectionEndEvent):
                depth -= 1
                events.append(event)
            elif isinstance(event, yaml.NodeEvent):
                nodes += 1
                depth += isinstance(event, CollectionStartEvent)
                _refuse_beyond_limits(event, depth, nodes)
                events.append(event)
    except yaml.YAMLError as error:
        raise _syntax_error(error, text) from None
    # The pure Python parser lets these out for escapes and directives with absurd numbers.
    except (ValueError, OverflowError) as error:
        raise _refusal(Place(1, 1), "yaml_syntax", f"this is no YAML: {error}", SYNTAX_HINT) from None
    return events


def _refuse_beyond_limits(event: yaml.NodeEvent, depth: int, nodes: int) -> None:
    place = _place(event)
    if isinstance(event, yaml.AliasEvent):
        raise _refusal(
            place, "yaml_limit", f"the alias {quoted(f'*{event.anchor}')} is not taken", "write the value out"
        )
    if isinstance(event, yaml.ScalarEvent | CollectionStartEvent) and event.tag is not None:
        raise _refusal(place, "yaml_limit", f"the tag {quoted(event.tag)} is not taken", "remove the tag")
    if depth > MAX_DEPTH:
        message = f"the definition is nested more than {MAX_DEPTH} levels deep"
        raise _refusal(place, "yaml_limit", message, "make it flatter, or divide it into several listeners")
    if nodes > MAX_NODES:
        message = f"the definition has more than {MAX_NODES} values"
        raise _refusal(place, "yaml_limit", message, "make it shorter, or divide it into several flows")


def _syntax_error(error: yaml.YAMLError, text: str) -> OrganismError:
    if not isinstance(error, yaml.MarkedYAMLError):
        return _refusal(Place(1, 1), "yaml_syntax", "this is no YAML", SYNTAX_HINT)
    mark = error.problem_mark or error.context_mark
    # What never ends is repaired where it begins.
    if mark and error.context_mark and mark.index >= len(text.rstrip()):
        mark = error.context_mark
    place = Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)
    message = ": ".join(part for part in (error.context, error.problem) if part)
    return _refusal(place, "yaml_syntax", message or "this is no YAML", _syntax_hint(message, text, place))


def _syntax_hint(message: str, text: str, place: Place) -> str:
    """What to do about the mistakes that are made most."""
    line = text.splitlines()[place.line - 1 : place.line]
    if any("\t" in part[: len(part) - len(part.lstrip())] for part in line) or "\\t" in message:
        return "indent with spaces, not with tabs"
    hints = (hint for part, hint in SYNTAX_HINTS.items() if part in message)
    return next(hints, SYNTAX_HINT)


class _Builder:
    """Turns the events of one document into JSON values. Recursion is bounded: the events passed `_scan`."""

    def __init__(self, events: Iterator[yaml.Event]) -> None:
        self._events = events
        self.document = Document()
        self.document.values[()] = _place(next(events))
        self.document.value = self._mapping(())

    def _report(self, event: yaml.Event, path: Path, code: str, message: str, hint: str) -> None:
        self.document.problems.append(Problem(*_place(event), code, message, hint, path=path))

    def _node(self, event: yaml.Event, path: Path) -> JsonValue:
        self.document.values[path] = _place(event)
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, path)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(path)
        return self._sequence(path)

    def _mapping(self, path: Path) -> dict[str, JsonValue]:
        mapping: dict[str, JsonValue] = {}
        for event in self._events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key = self._key(event, path, mapping)
            value = next(self._events)
            if key is None:
                self._skip(value)
            else:
                self.document.keys[(*path, key)] = _place(event)
                mapping[key] = self._node(value, (*path, key))
        return mapping

    def _sequence(self, path: Path) -> list[JsonValue]:
        items: list[JsonValue] = []
        for event in self._events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            items.append(self._node(event, (*path, len(items))))
        return items

    def _key(self, event: yaml.Event, path: Path, taken: dict[str, JsonValue]) -> str | None:
        """The key, or None where the entry cannot count."""
        if not isinstance(event, yaml.ScalarEvent):
            self._skip(event)
            self._report(event, path, "wrong_type", "a key must be text", "write a word before the colon")
            return None
        if event.implicit[0] and event.value == "<<":
            self._report(event, path, "yaml_limit", "merge keys (<<) are not taken", "write the entries out")
            return None
        key = self._scalar(event, path)
        if not isinstance(key, str):
            hint = f"write {quoted(event.value)} with its quotes"
            self._report(event, path, "wrong_type", "a key must be text", hint)
            return None
        if key in taken:
            first = self.document.keys[(*path, key)]
            message = f"the key {quoted(key)} is given twice"
            self._report(
                event, (*path, key), "duplicate_key", message, f"the first is in line {first.line}; remove one"
            )
            return None
        return key

    def _scalar(self, event: yaml.ScalarEvent, path: Path) -> JsonValue:
        """What a scalar means. One that JSON cannot hold is reported and stays text."""
        text = event.value
        if UNSTORABLE_CHARACTER.search(text):
            message = "the text contains a NUL character or half a surrogate pair"
            self._report(event, path, "yaml_syntax", message, "remove the escape that stands for it")
            return ""
        if not event.implicit[0]:
            return text
        if text in CONSTANTS:
            return CONSTANTS[text]
        number = _number(text)
        if number is not None and not math.isfinite(number):
            hint = "write it in quotes if it is meant as text"
            self._report(event, path, "out_of_range", f"the number {quoted(text)} is out of range", hint)
            return text
        return text if number is None else number

    def _skip(self, event: yaml.Event) -> None:
        depth = 0
        while True:
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth == 0:
                return
            event = next(self._events)


def is_plain_text(text: str) -> bool:
    """Whether the text, written without quotes, stands for itself: not for a number, a truth value or null."""
    return text not in CONSTANTS and _number(text) is None


def _number(text: str) -> int | float | None:
    """The number that a plain scalar is, infinite where JSON or 64 bits cannot hold it; None where it is text."""
    if INTEGER.fullmatch(text):
        # Python refuses to read integers of thousands of digits.
        integer = int(text) if len(text) <= MAX_INTEGER else 2**63
        return integer if -(2**63) <= integer < 2**63 else math.inf
    if FLOAT.fullmatch(text):
        return float(text)
    return math.inf if NOT_FINITE.fullmatch(text) else None
