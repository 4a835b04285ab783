"""Encrypts users' secrets for storage, and redacts them from everything that is stored or shown."""

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

from bloxserver.production_checks import MINIMUM_SECRET_BYTES
from bloxserver.settings import Settings

SECRET_NAME = "[A-Za-z_][A-Za-z0-9_]{0,63}"  # noqa: S105
"""The pattern of a valid secret name."""

VERSION = "v1"
PURPOSE = "secrets"
KEY_ID_DIGITS = 8
NONCE_BYTES = 12

QUERY_CHARACTERS = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"#<>')
PATH_CHARACTERS = "".join(character for character in QUERY_CHARACTERS if character not in "?`{}")
UNENCODED = ("", "/", "!'()*", QUERY_CHARACTERS, PATH_CHARACTERS)
"""Characters that different URL and form encoders leave unencoded."""
MIN_REDACTED_LENGTH = 4
"""In characters. Shorter secrets occur in many texts by coincidence."""
MIN_BASE64_LENGTH = 7
"""In characters of base64. Shorter fragments occur in long base64 by coincidence."""


class DecryptionError(Exception):
    """A ciphertext that cannot be decrypted: the key is missing, it belongs to another secret, or it is malformed."""


class SecretCipher:
    """Encrypts with the first of its keys and decrypts with any of them (AES-256-GCM).

    A ciphertext has the form `v1.KEY_ID.BASE64URL`. Owner and name are its associated data: with others, decryption
    fails.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        """`keys` are texts of any length. Raises `ValueError` if there are none."""
        if not keys:
            raise ValueError("no encryption key is given")
        self._ciphers: dict[str, AESGCM] = {}
        for key in keys:
            info = f"bloxserver {PURPOSE} {VERSION}".encode()
            derived = HKDF(SHA256(), 32, salt=None, info=info).derive(_bytes(key))
            self._ciphers.setdefault(sha256(b"key id " + derived).hexdigest()[:KEY_ID_DIGITS], AESGCM(derived))
        self._first = next(iter(self._ciphers))

    @property
    def prefix(self) -> str:
        """The prefix of every ciphertext that was encrypted with the first key."""
        return f"{VERSION}.{self._first}."

    def encrypt(self, text: str, *, owner: UUID, name: str) -> str:
        nonce = os.urandom(NONCE_BYTES)
        ciphertext = self._ciphers[self._first].encrypt(nonce, _bytes(text), _associated_data(self._first, owner, name))
        return self.prefix + base64.urlsafe_b64encode(nonce + ciphertext).decode().rstrip("=")

    def decrypt(self, ciphertext: str, *, owner: UUID, name: str) -> str:
        """Return the plaintext. Raises `DecryptionError`."""
        version, key_id, content = [*ciphertext.split(".", 2), "", ""][:3]
        cipher = self._ciphers.get(key_id)
        if cipher is None or version != VERSION:
            raise DecryptionError("encrypted with an unknown key")
        try:
            decoded = base64.b64decode(content + "=" * (-len(content) % 4), altchars=b"-_", validate=True)
            nonce, encrypted = decoded[:NONCE_BYTES], decoded[NONCE_BYTES:]
            return cipher.decrypt(nonce, encrypted, _associated_data(key_id, owner, name)).decode(
                errors="surrogatepass"
            )
        except (InvalidTag, ValueError):
            raise DecryptionError("modified, or encrypted for another owner or name") from None

    def needs_rotation(self, ciphertext: str) -> bool:
        """Whether it was encrypted with another key than the first."""
        return not ciphertext.startswith(self.prefix)


def get_cipher(settings: Settings) -> SecretCipher | None:
    """Return the cipher of this installation, or None if `API_KEY_ENCRYPTION_KEY` is unset or contains a short key."""
    keys = settings.encryption_keys
    if not keys or any(len(_bytes(key)) < MINIMUM_SECRET_BYTES for key in keys):
        return None
    return _cached_cipher(keys)


@lru_cache(maxsize=4)
def _cached_cipher(keys: tuple[str, ...]) -> SecretCipher:
    return SecretCipher(keys)


def _associated_data(key_id: str, owner: UUID, name: str) -> bytes:
    """Return the associated data of a ciphertext. The name is last, because only the name may contain any character."""
    return _bytes(f"{VERSION}|{key_id}|{PURPOSE}|{owner.hex}|{name}")


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def redact(value: JsonValue, secrets: Mapping[str, str]) -> JsonValue:
    """Replace every occurrence of a secret in texts and keys by `[secret NAME]`. `secrets` maps names to values.

    Occurrences are found verbatim, percent-encoded, escaped for JSON or HTML, and in base64, also inside longer base64.
    Secrets of less than 4 characters are found only as a whole text. The time is linear in the size of the value.
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
    # If one secret contains another, the longer one is replaced first.
    found.sort(key=lambda each: len(each[0]), reverse=True)
    placeholders = {f"\0{number}\0": mark for number, mark in enumerate(marks)}

    def redact_leaf(leaf: str | int | float) -> str | int | float:
        if leaf in whole:
            return whole[leaf]
        if not isinstance(leaf, str) or not any(form in leaf for form, _ in found):
            return leaf
        # No form contains NUL or fits between two of them, so no form is found inside a placeholder.
        for form, placeholder in found:
            leaf = leaf.replace(form, placeholder)
        for placeholder, mark in placeholders.items():
            leaf = leaf.replace(placeholder, mark)
        return leaf

    return _map_leaves(value, redact_leaf)


def _is_plain_number(text: str) -> bool:
    """Whether the text may be returned as a JSON number, and is long enough to redact."""
    return MIN_REDACTED_LENGTH <= len(text) <= 300 and text.isascii() and text.isdigit() and text[0] != "0"


def _leaves(value: JsonValue) -> list[str | int | float]:
    """Return all texts, keys and numbers in the value."""
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


def _map_leaves(value: JsonValue, change: Callable[[str | int | float], str | int | float]) -> JsonValue:
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
    """Return the encoded forms in which the secret may occur."""
    forms: set[str] = set()
    for text in {secret, secret.strip()}:
        if len(text) >= MIN_REDACTED_LENGTH:
            # Hosts in URLs are converted to lower case.
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
    """Yield the forms escaped for JSON, for JSON inside JSON, for HTML, and by Python's `repr`."""
    for form in (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]):
        for slashed in (form, form.replace("/", "\\/")):
            yield slashed
            yield json.dumps(slashed, ensure_ascii=False)[1:-1]
    for form in (html.escape(text), html.escape(text, quote=False)):
        yield form
        yield form.replace("&#x27;", "&#39;")
    yield repr(text)[1:-1]


def _base64(content: bytes) -> Iterator[str]:
    """Yield the base64 of the content, and the characters that are the same at every offset in longer content."""
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
