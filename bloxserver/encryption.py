"""Encrypts users' secrets for storage."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING
from uuid import UUID

from bloxserver.production_checks import MINIMUM_SECRET_BYTES
from bloxserver.settings import Settings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SECRET_NAME = "[A-Za-z_][A-Za-z0-9_]{0,63}"  # noqa: S105
"""The pattern of a valid secret name."""

VERSION = "v1"
PURPOSE = "secrets"
KEY_ID_DIGITS = 8
NONCE_BYTES = 12


class DecryptionError(Exception):
    """A ciphertext that cannot be decrypted: the key is missing, it belongs to another secret, or it is malformed."""


class SecretCipher:
    """Encrypts with the first of its keys and decrypts with any of them (AES-256-GCM).

    A ciphertext has the form `v1.KEY_ID.BASE64URL`. Owner and name are its associated data: with others, decryption
    fails.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        """`keys` are texts of any length. Raises `ValueError` if there are none."""
        # Servers without an encryption key do not need it.
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

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
        from cryptography.exceptions import InvalidTag

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
