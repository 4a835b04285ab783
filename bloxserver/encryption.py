"""Keeps users' secrets out of sight: sealed where they are stored, and blotted out where they would be shown."""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any
from urllib.parse import quote
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import JsonValue

from bloxserver.settings import MINIMUM_SECRET_BYTES, Settings

SECRET_NAME = "[A-Za-z_][A-Za-z0-9_]{0,63}"  # noqa: S105
"""The pattern of names that a secret may have."""

VERSION = "v1"
PURPOSE = "secrets"
KEY_ID_DIGITS = 8
NONCE_BYTES = 12

QUERY_CHARACTERS = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"#<>')
PATH_CHARACTERS = "".join(character for character in QUERY_CHARACTERS if character not in "?`{}")
UNENCODED = ("", "/", "!'()*", QUERY_CHARACTERS, PATH_CHARACTERS)
"""Characters that different encoders of addresses and forms leave as they are."""
MIN_REDACTED_LENGTH = 4
"""Characters. What is shorter stands in many texts by chance."""
MIN_BASE64_LENGTH = 7
"""Characters of a piece of base64: shorter ones stand in long base64 by chance."""


class DecryptionError(Exception):
    """A sealed text that does not open: its key is gone, it belongs elsewhere, or it is no sealed text."""


class SecretCipher:
    """Seals texts with the first of its keys and opens what any of them sealed (AES-256-GCM).

    A sealed text is `v1.KEY_ID.BASE64URL`. It is bound to its owner and its name: for others it does not open.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        """`keys` are texts as an operator chose them, of any length; raises ValueError where there is none."""
        if not keys:
            raise ValueError("no key to seal with")
        self._ciphers: dict[str, AESGCM] = {}
        for key in keys:
            info = f"bloxserver {PURPOSE} {VERSION}".encode()
            derived = HKDF(SHA256(), 32, salt=None, info=info).derive(_bytes(key))
            self._ciphers.setdefault(sha256(b"key id " + derived).hexdigest()[:KEY_ID_DIGITS], AESGCM(derived))
        self._first = next(iter(self._ciphers))

    @property
    def prefix(self) -> str:
        """How every text begins that the first key sealed."""
        return f"{VERSION}.{self._first}."

    def encrypt(self, text: str, *, owner: UUID, name: str) -> str:
        nonce = os.urandom(NONCE_BYTES)
        ciphertext = self._ciphers[self._first].encrypt(nonce, _bytes(text), _binding(self._first, owner, name))
        return self.prefix + base64.urlsafe_b64encode(nonce + ciphertext).decode().rstrip("=")

    def decrypt(self, ciphertext: str, *, owner: UUID, name: str) -> str:
        """The text; raises `DecryptionError`, whatever is wrong."""
        version, key_id, content = [*ciphertext.split(".", 2), "", ""][:3]
        cipher = self._ciphers.get(key_id)
        if cipher is None or version != VERSION:
            raise DecryptionError("sealed by a key that is not here")
        try:
            decoded = base64.b64decode(content + "=" * (-len(content) % 4), altchars=b"-_", validate=True)
            nonce, encrypted = decoded[:NONCE_BYTES], decoded[NONCE_BYTES:]
            return cipher.decrypt(nonce, encrypted, _binding(key_id, owner, name)).decode(errors="surrogatepass")
        except (InvalidTag, ValueError):
            raise DecryptionError("changed, or sealed for another owner or name") from None

    def needs_rotation(self, ciphertext: str) -> bool:
        """Whether anything but the first key sealed it."""
        return not ciphertext.startswith(self.prefix)


def cipher_of(settings: Settings) -> SecretCipher | None:
    """The sealer of this installation; None where `API_KEY_ENCRYPTION_KEY` is not set, or a key in it is too short."""
    keys = settings.encryption_keys
    if not keys or any(len(_bytes(key)) < MINIMUM_SECRET_BYTES for key in keys):
        return None
    return _cipher(keys)


@lru_cache(maxsize=4)
def _cipher(keys: tuple[str, ...]) -> SecretCipher:
    return SecretCipher(keys)


def _binding(key_id: str, owner: UUID, name: str) -> bytes:
    """What a sealed text is bound to. The name comes last: it alone may hold any character."""
    return _bytes(f"{VERSION}|{key_id}|{PURPOSE}|{owner.hex}|{name}")


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def redact(value: JsonValue, secrets: Mapping[str, str]) -> JsonValue:
    """The value with `[secret NAME]` wherever a text or a key holds a secret, given by name.

    Found as they are, percent-encoded, escaped for JSON or HTML, and in base64, also amid other base64; those of less
    than 4 characters only as a whole text. The time grows with the size of the value, whatever is in it.
    """
    marks = [f"[secret {name}]" for name in secrets]
    whole: dict[str | int | float, str] = {
        text: mark for text, mark in zip(secrets.values(), marks, strict=True) if text
    }
    whole |= {int(text): mark for text, mark in whole.items() if isinstance(text, str) and _is_plain_number(text)}
    leaves = _leaves(value)
    every_text = "\n".join(leaf for leaf in leaves if isinstance(leaf, str))
    sought = [(form, number) for number, text in enumerate(secrets.values()) for form in _forms(text)]
    found = [(form, f"\0{number}\0") for form, number in sought if form in every_text]
    if not found and whole.keys().isdisjoint(leaves):
        return value
    # Of two secrets of which one holds the other, the longer is meant.
    found.sort(key=lambda each: len(each[0]), reverse=True)
    holes = {f"\0{number}\0": mark for number, mark in enumerate(marks)}

    def blotted(leaf: str | int | float) -> str | int | float:
        if leaf in whole:
            return whole[leaf]
        if not isinstance(leaf, str) or not any(form in leaf for form, _ in found):
            return leaf
        # No form has a NUL or fits between two, so none is found in what was put in before.
        for form, hole in found:
            leaf = leaf.replace(form, hole)
        for hole, mark in holes.items():
            leaf = leaf.replace(hole, mark)
        return leaf

    return _changed(value, blotted)


def _is_plain_number(text: str) -> bool:
    """Whether the text may come back as a number, of at least the sought length."""
    return MIN_REDACTED_LENGTH <= len(text) <= 300 and text.isascii() and text.isdigit() and text[0] != "0"


def _leaves(value: JsonValue) -> list[str | int | float]:
    """All texts, keys and numbers."""
    leaves: list[str | int | float] = []
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


def _changed(value: JsonValue, change: Callable[[str | int | float], str | int | float]) -> JsonValue:
    """A copy with `change` applied to all texts, keys and numbers; it may be of any depth."""
    around = [value]
    pending: list[Any] = [around]
    while pending:
        container = pending.pop()
        for place, child in list(enumerate(container) if isinstance(container, list) else container.items()):
            if isinstance(child, dict):
                container[place] = {change(key): grandchild for key, grandchild in child.items()}
                pending.append(container[place])
            elif isinstance(child, list):
                container[place] = child.copy()
                pending.append(container[place])
            elif child is not None and not isinstance(child, bool):
                container[place] = change(child)
    return around[0]


def _forms(secret: str) -> set[str]:
    """Texts by which others would show the secret."""
    forms: set[str] = set()
    for text in {secret, secret.strip()}:
        if len(text) >= MIN_REDACTED_LENGTH:
            # hosts of addresses are told in lower case
            forms |= {text, text.lower(), *_percent_encoded(text), *_escaped(text), *_base64(_bytes(text))}
    return forms


def _percent_encoded(text: str) -> Iterator[str]:
    for kept in UNENCODED:
        encoded = quote(text, safe=kept, errors="surrogatepass")
        lower = re.sub("%..", lambda match: match[0].lower(), encoded)
        for form in (encoded, lower):
            yield form
            yield form.replace("%20", "+")


def _escaped(text: str) -> Iterator[str]:
    """For JSON, for JSON within JSON, for HTML, and as Python shows it."""
    for form in (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]):
        for slashed in (form, form.replace("/", "\\/")):
            yield slashed
            yield json.dumps(slashed, ensure_ascii=False)[1:-1]
    for form in (html.escape(text), html.escape(text, quote=False)):
        yield form
        yield form.replace("&#x27;", "&#39;")
    yield repr(text)[1:-1]


def _base64(content: bytes) -> Iterator[str]:
    """Alone, and the characters that are the same wherever it stands in what is encoded."""
    whole = base64.b64encode(content).decode()
    forms = [whole, whole.rstrip("=")]
    for before, mixed in ((0, 0), (1, 2), (2, 3)):
        encoded = base64.b64encode(bytes(before) + content).decode().rstrip("=")
        is_last_mixed = (before + len(content)) % 3 > 0
        piece = encoded[mixed : len(encoded) - is_last_mixed]
        if len(piece) >= MIN_BASE64_LENGTH:
            forms.append(piece)
    for form in forms:
        yield form
        yield form.replace("+", "-").replace("/", "_")
