"""Load untrusted YAML as JSON values.

A first pass over the parser's events enforces all limits before any value is built. A loader without it can crash the
process (deep nesting) or exhaust its memory (aliases).
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml
from pydantic import JsonValue
from yaml.events import CollectionEndEvent, CollectionStartEvent

from bloxserver.organism.problems import OrganismError, Path, Problem, quoted
from bloxserver.organism.yaml_source import Place, Source

MAX_BYTES = 256 * 1024
MAX_DEPTH = 64
MAX_NODES = 20_000
MAX_FORBIDDEN = 20
"""The number of forbidden characters that are reported. A binary file has many."""

PARSER = yaml.CLoader if yaml.__with_libyaml__ else yaml.SafeLoader

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
LOCATED = ("{{", "payload", "resume", "steps", "trigger", "execution")
"""A text with one of these parts may have problems at parts of it."""


SYNTAX_HINT = "check this line for a missing quote, colon or bracket, and check its indentation"
SYNTAX_HINTS = {
    "invalid Unicode character escape": r"write the character itself, or both halves of a pair, like \ud83d\ude00",
    "mapping values are not allowed": "put quotes around a text with a colon, or indent the line like its neighbours",
    "cannot start any token": "put the text into quotes",
    "expected alphabetic or numeric character": "put the text into quotes",
    "while scanning a quoted scalar": "add the quote that ends the text",
    "unknown escape": "write \\\\ for a backslash, or put the text into single quotes",
    "parsing a flow": "add the missing comma or closing bracket",
    "block mapping": "indent all keys of a mapping equally, and write nothing after a closing quote",
    "block collection": "indent all dashes of a list equally",
    "could not find expected ':'": "add a colon and a value, or indent the line as part of the text above it",
}


@dataclass
class Document:
    """A document as JSON values, with the place of each value.

    `problems` has the problems after which loading can continue: a repeated key (its first value is used), a key or a
    number that JSON does not support and, if loaded as `tolerant`, an alias, a tag, a forbidden character or a second
    document.
    """

    source: Source = field(default_factory=lambda: Source(""))
    value: dict[str, JsonValue] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unreadable: set[Place] = field(default_factory=set)
    """The places of values that could not be read. No further problems are reported for them."""
    keys: dict[Path, Place] = field(default_factory=dict)
    values: dict[Path, Place] = field(default_factory=dict)
    extents: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """Start and end of each text that contains `{{`, as indexes into the source."""

    def place_of(self, path: Path) -> Place:
        """Return the place of a value or, if it does not exist, of the closest enclosing value."""
        while path and path not in self.values:
            path = path[:-1]
        return self.values[path]

    def place_of_key(self, path: Path) -> Place:
        return self.keys.get(path) or self.place_of(path)

    def place_within(self, path: Path, part: str, after: Place | None = None) -> Place:
        """Return the place of a part of a text or of a key, after the place `after`. If escapes or folded lines hide
        it, this is the place of the text or the key.
        """
        start, stop = self.extents.get(path, (0, 0))
        if after is not None and after != self.place_of(path):
            start = self.source.index(after) + 1
        found = self.source.text.find(part, start, stop)
        if found >= 0:
            return self.source.place(found)
        return self.place_of_key(path) if path and part in str(path[-1]) else self.place_of(path)


def decode(data: bytes) -> str:
    """Decode a definition. Raises OrganismError if it is not UTF-8."""
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start].decode()
        place = Source(before + "x").place(len(before))
        raise _error(place, "yaml_syntax", "the definition is not UTF-8 text", "save it with UTF-8 encoding") from None


def load(text: str, *, tolerant: bool = False) -> Document:
    """Load one document whose top is a mapping. Raises OrganismError, and no other exception, for any text.

    With `tolerant`, loading continues after unsupported syntax to find the other problems. The value is then
    incomplete, and `problems` has an error.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        message = f"the definition has {size} bytes, and the limit is {MAX_BYTES}"
        raise _error(Place(1, 1), "yaml_limit", message, "shorten it, or divide it into several flows")
    document = Document(Source(text))
    _report_forbidden(document)
    events = _scan(document)
    hint = 'begin with "organism:"'
    if not events:
        raise _failed(document, Place(1, 1), "wrong_type", "the definition is empty", hint)
    if not isinstance(events[0], yaml.MappingStartEvent):
        raise _failed(document, _place(events[0]), "wrong_type", "the definition is not a mapping", hint)
    if document.problems and not tolerant:
        raise OrganismError(document.problems)
    return _Builder(iter(events), document).document


def _report_forbidden(document: Document) -> None:
    source = document.source
    for index in source.forbidden[:MAX_FORBIDDEN]:
        message = f"the character U+{ord(source.text[index]):04X} is not allowed"
        hint = "remove the character; it may be invisible in an editor"
        document.problems.append(Problem(*source.place(index), "yaml_syntax", message, hint))


def _error(place: Place, code: str, message: str, hint: str) -> OrganismError:
    return OrganismError([Problem(*place, code, message, hint)])


def _failed(document: Document, place: Place, code: str, message: str, hint: str) -> OrganismError:
    """Return the error that ends loading, together with the problems found before."""
    problems = [*document.problems, Problem(*place, code, message, hint)]
    return OrganismError(sorted(problems, key=lambda problem: (problem.line, problem.column)))


def _place(event: yaml.Event) -> Place:
    mark = event.start_mark
    return Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)


def _scan(document: Document) -> list[yaml.Event]:
    """Return the events of the document's nodes, after checking all limits."""
    source = document.source
    events: list[yaml.Event] = []
    documents = depth = nodes = 0
    try:
        for event in yaml.parse(source.parseable, Loader=PARSER):
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    message, hint = "a second document begins here", "remove the line with ---"
                    document.problems.append(Problem(*_place(event), "yaml_limit", message, hint))
                    break
            elif isinstance(event, CollectionEndEvent):
                depth -= 1
                events.append(event)
            elif isinstance(event, yaml.NodeEvent):
                nodes += 1
                depth += isinstance(event, CollectionStartEvent)
                _refuse_beyond_limits(document, event, depth, nodes)
                events.append(_normalized(document, event))
    except yaml.YAMLError as error:
        raise _syntax_error(error, document) from None
    # The pure Python parser raises these for escapes and directives with absurd numbers.
    except (ValueError, OverflowError) as error:
        raise _failed(document, Place(1, 1), "yaml_syntax", f"this is not YAML: {error}", SYNTAX_HINT) from None
    return events


def _refuse_beyond_limits(document: Document, event: yaml.NodeEvent, depth: int, nodes: int) -> None:
    if depth > MAX_DEPTH:
        message = f"the definition is nested more than {MAX_DEPTH} levels deep"
        hint = "reduce the nesting, or divide it between several listeners"
        raise _failed(document, _place(event), "yaml_limit", message, hint)
    if nodes > MAX_NODES:
        message = f"the definition has more than {MAX_NODES} values"
        hint = "shorten it, or divide it into several flows"
        raise _failed(document, _place(event), "yaml_limit", message, hint)


def _normalized(document: Document, event: yaml.NodeEvent) -> yaml.NodeEvent:
    """Return the event without YAML's features that JSON does not have. An alias becomes null, a tag is ignored, and
    both are reported.
    """
    place = _place(event)
    if isinstance(event, yaml.AliasEvent):
        message = f"aliases like {quoted(f'*{event.anchor}')} are not supported"
        document.problems.append(Problem(*place, "yaml_limit", message, "write the value instead of the alias"))
        document.unreadable.add(place)
        return yaml.ScalarEvent(None, None, (True, False), "", event.start_mark, event.end_mark)
    if isinstance(event, yaml.ScalarEvent | CollectionStartEvent) and event.tag is not None:
        message = f"tags like {quoted(event.tag)} are not supported"
        document.problems.append(Problem(*place, "yaml_limit", message, "remove the tag"))
        document.unreadable.add(place)
    if isinstance(event, yaml.ScalarEvent):
        event.value = document.source.restored(event.value, event.style)
    return event


def _syntax_error(error: yaml.YAMLError, document: Document) -> OrganismError:
    if not isinstance(error, yaml.MarkedYAMLError):
        return _failed(document, Place(1, 1), "yaml_syntax", "this is not YAML", SYNTAX_HINT)
    mark = error.problem_mark or error.context_mark
    # An unclosed text or collection is reported where it begins.
    if mark and error.context_mark and mark.index >= len(document.source.text.rstrip()):
        mark = error.context_mark
    place = Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)
    message = ": ".join(part for part in (error.context, error.problem) if part)
    hint = _syntax_hint(message, document.source.line(place.line))
    return _failed(document, place, "yaml_syntax", message or "this is not YAML", hint)


def _syntax_hint(message: str, line: str) -> str:
    """Return a hint for the most frequent errors."""
    if "\t" in line[: len(line) - len(line.lstrip())] or "\\t" in message:
        return "indent with spaces, not with tabs"
    hints = (hint for part, hint in SYNTAX_HINTS.items() if part in message)
    return next(hints, SYNTAX_HINT)


class _Builder:
    """Builds JSON values from the events of one document. `_scan` has limited the depth of the recursion."""

    def __init__(self, events: Iterator[yaml.Event], document: Document) -> None:
        self._events = events
        self.document = document
        self.document.values[()] = _place(next(events))
        self.document.value = self._mapping(())

    def _report(self, event: yaml.Event, path: Path, code: str, message: str, hint: str) -> None:
        self.document.problems.append(Problem(*_place(event), code, message, hint, path=path))

    def _node(self, event: yaml.Event, path: Path) -> JsonValue:
        self.document.values[path] = _place(event)
        if isinstance(event, yaml.ScalarEvent):
            if any(part in event.value for part in LOCATED) and event.start_mark and event.end_mark:
                self.document.extents[path] = (event.start_mark.index, event.end_mark.index)
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
        """Return the key, or None if the entry is invalid."""
        if not isinstance(event, yaml.ScalarEvent):
            self._skip(event)
            self._report(event, path, "wrong_type", "a key must be text", "write a word before the colon")
            return None
        if event.implicit[0] and event.value == "<<":
            self._report(event, path, "yaml_limit", "merge keys (<<) are not supported", "write all entries")
            return None
        key = self._scalar(event, path)
        if not isinstance(key, str):
            hint = f"write {quoted(event.value)} with quotes"
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
        """Return the value of a scalar. A value that JSON does not support is reported and becomes text."""
        text = event.value
        if UNSTORABLE_CHARACTER.search(text):
            message = "the text contains a NUL character or half of a surrogate pair"
            self._report(event, path, "yaml_syntax", message, "remove the escape sequence of this character")
            self.document.unreadable.add(_place(event))
            return ""
        if not event.implicit[0]:
            return text
        if text in CONSTANTS:
            return CONSTANTS[text]
        number = _number(text)
        if number is not None and not math.isfinite(number):
            hint = "put it into quotes if it is text"
            self._report(event, path, "out_of_range", f"the number {quoted(text)} is out of range", hint)
            self.document.unreadable.add(_place(event))
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
    """Whether the text, written without quotes, is text and not a number, a boolean or null."""
    return text not in CONSTANTS and _number(text) is None


def _number(text: str) -> int | float | None:
    """Return the number that an unquoted scalar represents, or None for text. A number out of range is infinite."""
    if INTEGER.fullmatch(text):
        # Python refuses to read integers of thousands of digits.
        integer = int(text) if len(text) <= MAX_INTEGER else 2**63
        return integer if -(2**63) <= integer < 2**63 else math.inf
    if FLOAT.fullmatch(text):
        return float(text)
    return math.inf if NOT_FINITE.fullmatch(text) else None
