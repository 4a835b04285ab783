"""The format of API keys: `blx_live_`, 30 random characters, and a checksum of 6 characters.

The checksum shows whether a text can be a key at all, without a statement. Secret scanners find keys by the prefix.
"""

from __future__ import annotations

import re
import secrets
from binascii import crc32
from hashlib import sha256

PREFIX = "blx_live_"
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
RANDOM_CHARACTERS = 30
"""178 bits."""
CHECKSUM_CHARACTERS = 6
PATTERN = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{RANDOM_CHARACTERS + CHECKSUM_CHARACTERS}}}")
HINT_CHARACTERS = 4


def new_key() -> str:
    """Return a random key."""
    text = "".join(secrets.choice(ALPHABET) for _ in range(RANDOM_CHARACTERS))
    return f"{PREFIX}{text}{_checksum(text)}"


def is_key(token: str) -> bool:
    """Whether a bearer token is meant as an API key, valid or not."""
    return token.startswith(PREFIX)


def is_well_formed(key: str) -> bool:
    """Whether a key has the right characters and checksum."""
    text = key[len(PREFIX) : -CHECKSUM_CHARACTERS]
    return PATTERN.fullmatch(key) is not None and key.endswith(_checksum(text))


def hash_of(key: str) -> bytes:
    """Return the SHA-256 hash of a key, which is what the database stores. A random secret needs no slow hash."""
    return sha256(key.encode(errors="surrogatepass")).digest()


def hint_of(key: str) -> str:
    """Return the prefix and the last characters, by which a user recognises a key."""
    return f"{PREFIX}…{key[-HINT_CHARACTERS:]}"


def _checksum(text: str) -> str:
    number = crc32(text.encode())
    digits = ""
    for _ in range(CHECKSUM_CHARACTERS):
        number, digit = divmod(number, len(ALPHABET))
        digits = ALPHABET[digit] + digits
    return digits
