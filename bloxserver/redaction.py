"""Removes secrets from what is stored, shown or logged: remote servers often repeat what they received."""

from __future__ import annotations

import base64
import html
import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from pydantic import JsonValue

QUERY_CHARACTERS = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"#<>')
PATH_CHARACTERS = "".join(character for character in QUERY_CHARACTERS if character not in "?`{}")
UNENCODED = ("", "/", "!'()*", QUERY_CHARACTERS, PATH_CHARACTERS)
"""Characters that different URL and form encoders leave unencoded."""
MIN_REDACTED_LENGTH = 4
"""In characters. Shorter secrets occur in many texts by coincidence."""
MIN_ENCODED_LENGTH = 7
"""In characters of base64 or hexadecimal. Shorter fragments occur in long encoded texts by coincidence."""

Leaf = str | int | float


class Redactor:
    """Replaces every occurrence of some secrets in JSON values by marks.

    Occurrences are found in any letter case: as they are, reversed, percent-encoded, escaped for JSON or HTML, in
    hexadecimal, and in base64, also inside longer base64. Secrets of less than 4 characters are found only as a whole
    text. The time is linear in the size of the value, and proportional to the number of secrets.
    """

    def __init__(self, secrets: Iterable[tuple[str, str]]) -> None:
        """`secrets` are pairs of a mark and the secret that it replaces."""
        secrets = list(secrets)
        self._whole: dict[Leaf, str] = {fold(text): mark for mark, text in secrets if text}
        self._whole |= {int(text): mark for mark, text in secrets if _is_plain_number(text)}
        self._marks = {f"\0{number}\0": mark for number, (mark, _) in enumerate(secrets)}
        forms = [(form, number) for number, (_, text) in enumerate(secrets) for form in _forms(text)]
        # If one secret contains another, the longer one is replaced first.
        self._forms = [
            (form, f"\0{number}\0") for form, number in sorted(forms, key=lambda each: len(each[0]), reverse=True)
        ]
        self._sorted_forms = sorted({form for form, _ in forms})

    def redact(self, value: JsonValue) -> JsonValue:
        """Return the value with marks in texts, keys and numbers. It is the same object if it contains no secret."""
        leaves = _leaves(value)
        folded = fold("\n".join(leaf for leaf in leaves if isinstance(leaf, str)))
        found = [each for each in self._forms if each[0] in folded]
        if not found and not any((fold(leaf) if isinstance(leaf, str) else leaf) in self._whole for leaf in leaves):
            return value
        return _map_leaves(value, lambda leaf: self._redact_leaf(leaf, found))

    def redact_text(self, text: str) -> str:
        return str(self.redact(text))

    def find_beginning(self, text: str) -> int:
        """Return where the end of the text may be the beginning of a secret; the length of the text if it is not."""
        folded = fold(text)
        longest = len(self._forms[0][0]) if self._forms else 0
        starts = range(max(0, len(text) - longest), len(text))
        return next((start for start in starts if self._is_beginning(folded[start:])), len(text))

    def _is_beginning(self, folded: str) -> bool:
        index = bisect_left(self._sorted_forms, folded)
        return index < len(self._sorted_forms) and self._sorted_forms[index].startswith(folded)

    def _redact_leaf(self, leaf: Leaf, found: list[tuple[str, str]]) -> Leaf:
        if not isinstance(leaf, str):
            return self._whole.get(leaf, leaf)
        folded = fold(leaf)
        if folded in self._whole:
            return self._whole[folded]
        placed = False
        # No form contains NUL or fits between two of them, so no form is found inside a placeholder.
        for form, placeholder in found:
            if form in folded:
                leaf = placeholder.join(_split(leaf, folded, form))
                folded, placed = fold(leaf), True
        if placed:
            for placeholder, mark in self._marks.items():
                leaf = leaf.replace(placeholder, mark)
        return leaf


class RedactedText:
    """A text that arrives in pieces. A secret is also replaced if it is split between pieces.

    A part that may be the beginning of a secret is held back until more of the text has arrived.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held = ""

    def add(self, piece: str) -> str:
        """Return the next part of the redacted text, which may be empty."""
        text = self._held + piece
        start, redacted = self._redactor.find_beginning(text), self._redactor.redact_text(text)
        if redacted != text and start < len(text):
            start = 0  # the two secrets may overlap
        self._held = text[start:]
        return redacted if start == len(text) else text[:start]

    def end(self) -> str:
        """Return the rest of the redacted text."""
        held, self._held = self._held, ""
        return self._redactor.redact_text(held)


def redact(value: JsonValue, secrets: Mapping[str, str]) -> JsonValue:
    """Replace every occurrence of a user's secret by `[secret NAME]`. `secrets` maps names to values."""
    return Redactor((f"[secret {name}]", text) for name, text in secrets.items()).redact(value)


def fold(text: str) -> str:
    """Return the text in lower case, with the same length: character by character, and without the final sigma."""
    if text.isascii():
        return text.lower()
    return text.replace("\u0130", "i").lower().replace("\u03c2", "\u03c3")


def _split(text: str, folded: str, form: str) -> list[str]:
    """Split the text where its folded version contains the form."""
    parts, start = [], 0
    while (end := folded.find(form, start)) >= 0:
        parts.append(text[start:end])
        start = end + len(form)
    return [*parts, text[start:]]


def _is_plain_number(text: str) -> bool:
    """Whether the text may be returned as a JSON number, and is long enough to redact."""
    return MIN_REDACTED_LENGTH <= len(text) <= 300 and text.isascii() and text.isdigit() and text[0] != "0"


def _leaves(value: JsonValue) -> list[Leaf]:
    """Return all texts, keys and numbers in the value."""
    leaves: list[Leaf] = []
    pending = [value]
    while pending:
        current = pending.pop()
        if isinstance(current, dict):
            leaves.extend(current)
            pending.extend(current.values())
        elif isinstance(current, list):
            pending.extend(current)
        elif current is not None and not isinstance(current, bool):
            leaves.append(current)
    return leaves


def _map_leaves(value: JsonValue, change: Callable[[Leaf], Leaf]) -> JsonValue:
    """Return a copy with `change` applied to all texts, keys and numbers. Not recursive: the depth is unlimited."""
    around = [value]
    pending: list[Any] = [around]
    while pending:
        container = pending.pop()
        for index, child in list(enumerate(container) if isinstance(container, list) else container.items()):
            if isinstance(child, dict):
                container[index] = {change(key): grandchild for key, grandchild in child.items()}
                pending.append(container[index])
            elif isinstance(child, list):
                container[index] = child.copy()
                pending.append(container[index])
            elif child is not None and not isinstance(child, bool):
                container[index] = change(child)
    return around[0]


def _forms(secret: str) -> set[str]:
    """Return the folded encodings in which the secret may occur."""
    forms: set[str] = set()
    for text in {secret, secret.strip()}:
        if len(text) >= MIN_REDACTED_LENGTH:
            content = text.encode(errors="surrogatepass")
            encoded = (*_percent_encoded(text), *_escaped(text), *_hexadecimal(content), *_base64(content))
            forms |= {fold(form) for form in (text, text[::-1], *encoded)}
    return forms


def _percent_encoded(text: str) -> Iterator[str]:
    for kept in UNENCODED:
        encoded = quote(text, safe=kept, errors="surrogatepass")
        yield encoded
        yield encoded.replace("%20", "+")


def _escaped(text: str) -> Iterator[str]:
    """Yield the forms escaped for JSON, for JSON inside JSON, for HTML, and by Python's `repr`."""
    for form in (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]):
        for slashed in (form, form.replace("/", "\\/")):
            yield slashed
            yield json.dumps(slashed, ensure_ascii=False)[1:-1]
    for form in (html.escape(text), html.escape(text, quote=False)):
        yield form
        yield form.replace("&#x27;", "&#39;")
    yield repr(text)[1:-1]


def _hexadecimal(content: bytes) -> Iterator[str]:
    """Yield the digits alone, with separators, and percent-encoded."""
    if 2 * len(content) >= MIN_ENCODED_LENGTH:
        yield from (content.hex(), content.hex(" "), content.hex(":"), "%" + content.hex("%"))


def _base64(content: bytes) -> Iterator[str]:
    """Yield the base64 of the content, and the characters that are the same at every offset in longer content."""
    whole = base64.b64encode(content).decode()
    forms = [whole, whole.rstrip("=")]
    for before, mixed in ((0, 0), (1, 2), (2, 3)):
        encoded = base64.b64encode(bytes(before) + content).decode().rstrip("=")
        is_last_mixed = (before + len(content)) % 3 > 0
        piece = encoded[mixed : len(encoded) - is_last_mixed]
        if len(piece) >= MIN_ENCODED_LENGTH:
            forms.append(piece)
    for form in forms:
        yield form
        yield form.replace("+", "-").replace("/", "_")
