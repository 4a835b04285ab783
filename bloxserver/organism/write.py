"""Write an organism as readable YAML. Our loader and other YAML parsers read the same values from it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import yaml
from pydantic import JsonValue
from yaml.resolver import Resolver

from bloxserver.organism.yaml_loader import is_plain_text

TOP_ORDER = ("organism", "listeners", "execution")
HEAD_ORDER = ("name", "description")
LISTENER_ORDER = (
    "name",
    "description",
    "handler",
    "for_each",
    "parallel",
    "on_item_error",
    "payload_class",
    "agent",
    "prompt",
    "model",
    "temperature",
    "max_tokens",
    "config",
    "tool_config",
    "peers",
    "join",
    "timeout_seconds",
    "retries",
    "backoff_seconds",
)

INDENT = "  "
PLAIN = re.compile(r"(?!\.\.\.)[\w/.$(][^\t\n]*")
NOT_PLAIN = re.compile(r": | #|[: ]$")
ESCAPED = re.compile('["\\\\]|[^ -~\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]')
SHORT_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
MAX_SIMPLE_KEY = 1000
"""Parsers search at most 1024 characters for the colon after a key."""
RESOLVER = Resolver()
TEXT_TAG = "tag:yaml.org,2002:str"


def write(document: Mapping[str, JsonValue]) -> str:
    """Return the document as YAML, with its keys and those of its listeners in the documented order."""
    ordered = in_order(document, TOP_ORDER)
    head, listeners = ordered.get("organism"), ordered.get("listeners")
    if isinstance(head, dict):
        ordered["organism"] = in_order(head, HEAD_ORDER)
    if isinstance(listeners, list):
        ordered["listeners"] = [
            in_order(listener, LISTENER_ORDER) if isinstance(listener, dict) else listener for listener in listeners
        ]
    return _joined(_block(ordered))


def write_listener(listener: Mapping[str, JsonValue], indent: int) -> str:
    """Return one item of the list of listeners, with `indent` spaces before the dash."""
    return _joined(_indented(_item(in_order(listener, LISTENER_ORDER)), " " * indent))


def in_order(members: Mapping[str, JsonValue], order: Iterable[str]) -> dict[str, JsonValue]:
    """Return the members that `order` names, then the others in their order."""
    return {key: members[key] for key in order if key in members} | dict(members)


def _joined(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _indented(lines: Iterable[str], indent: str = INDENT) -> list[str]:
    return [f"{indent}{line}" if line else line for line in lines]


def _block(value: JsonValue) -> list[str]:
    """Return the lines of a value that starts at the beginning of a line."""
    if isinstance(value, dict) and value:
        return [line for key, child in value.items() for line in _member(key, child)]
    if isinstance(value, list) and value:
        return [line for child in value for line in _item(child)]
    return [_inline(value)]


def _member(key: str, value: JsonValue) -> list[str]:
    shown = _key(key)
    if len(shown) > MAX_SIMPLE_KEY:
        first, *rest = _below(value)
        return [f"? {shown}", f":{first}", *rest]
    first, *rest = _below(value)
    return [f"{shown}:{first}", *rest]


def _below(value: JsonValue) -> list[str]:
    """Return the text after a key's colon, and the lines below it."""
    if isinstance(value, dict | list) and value:
        return ["", *_indented(_block(value))]
    if isinstance(value, str) and _is_literal(value):
        return [f" {_literal_header(value)}", *_indented(_literal_lines(value))]
    return [f" {_inline(value)}"]


def _item(value: JsonValue) -> list[str]:
    if isinstance(value, str) and _is_literal(value):
        return [f"- {_literal_header(value)}", *_indented(_literal_lines(value))]
    first, *rest = _block(value)
    return [f"- {first}", *_indented(rest)]


def _is_literal(text: str) -> bool:
    """Whether every parser reads the text unchanged from a literal block (`|`)."""
    if "\n" not in text or text[0].isspace() or text.endswith("\n\n"):
        return False
    lines = text.split("\n")
    return not any(set(ESCAPED.findall(line)) - {'"', "\\", "\t"} for line in lines)


def _literal_header(text: str) -> str:
    return "|" if text.endswith("\n") else "|-"


def _literal_lines(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n")


def _inline(value: JsonValue) -> str:
    """Return a value for the current line: a scalar or an empty collection."""
    if isinstance(value, str):
        return value if _is_plain(value) and _is_text_anywhere(value) else _quoted(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{}"
    return "[]" if isinstance(value, list) else repr(value)


def _key(key: str) -> str:
    # YAML 1.1 reads `on` as a boolean. It is a key of this format, and other servers accept it without quotes.
    return key if _is_plain(key) and (key == "on" or _is_text_anywhere(key)) else _quoted(key)


def _is_plain(text: str) -> bool:
    """Whether the text can be written without quotes."""
    if not PLAIN.fullmatch(text) or NOT_PLAIN.search(text) or set(ESCAPED.findall(text)) - {'"', "\\"}:
        return False
    return is_plain_text(text)


def _is_text_anywhere(text: str) -> bool:
    """Whether YAML 1.1 parsers, which read `yes` as a boolean and 2024-01-31 as a date, read it as text too."""
    return bool(RESOLVER.resolve(yaml.ScalarNode, text, (True, False)) == TEXT_TAG)  # type: ignore[no-untyped-call]


def _quoted(text: str) -> str:
    special = set(ESCAPED.findall(text))
    if '"' in special and special <= {'"', "\\"} and "'" not in text:
        return f"'{text}'"
    return f'"{ESCAPED.sub(_escape, text)}"'


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    return SHORT_ESCAPES.get(character) or f"\\u{ord(character):04X}"
