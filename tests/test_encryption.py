"""Encryption of secrets for their owner, and redaction of secrets in every encoding."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID, uuid4

import pytest

from bloxserver.encryption import DecryptionError, SecretCipher, get_cipher
from bloxserver.settings import Settings

OLD = "old-key-of-an-operator-7c1f0e5b2a"
NEW = "new-key-of-an-operator-93d4a86b1f"
ADA, BOB = UUID(int=1), UUID(int=2)


def ciphertext(text: str = "s3cret", key: str = OLD) -> str:
    return SecretCipher([key]).encrypt(text, owner=ADA, name="TOKEN")


def decrypted(text: str, *keys: str, owner: UUID = ADA, name: str = "TOKEN") -> str:
    return SecretCipher(keys or [OLD]).decrypt(text, owner=owner, name=name)


class TestSecretCipher:
    @pytest.mark.parametrize("text", ["x", "s3cret", "ä🌍\n\t\"'", "x" * 8192, "🌍" * 8192])
    def test_decrypt_returns_the_encrypted_text(self, text: str) -> None:
        encrypted = ciphertext(text)
        assert decrypted(encrypted) == text
        version, key_id, content = encrypted.split(".")
        assert (version, len(key_id), len(content) % 4 != 1) == ("v1", 8, True)
        assert encrypted.isascii()
        assert len(text) < 4 or text not in encrypted

    def test_equal_texts_have_different_ciphertexts(self) -> None:
        assert len({ciphertext() for _ in range(100)}) == 100

    @pytest.mark.parametrize(
        ("owner", "name"), [(BOB, "TOKEN"), (ADA, "OTHER"), (ADA, "token"), (ADA, ""), (ADA, "\ud800"), (uuid4(), "X")]
    )
    def test_decryption_fails_for_another_owner_or_name(self, owner: UUID, name: str) -> None:
        with pytest.raises(DecryptionError):
            decrypted(ciphertext(), owner=owner, name=name)

    def test_first_key_encrypts_and_every_key_decrypts(self) -> None:
        both = SecretCipher([NEW, OLD])
        assert both.decrypt(ciphertext(key=OLD), owner=ADA, name="TOKEN") == "s3cret"
        assert both.decrypt(ciphertext(key=NEW), owner=ADA, name="TOKEN") == "s3cret"
        again = both.encrypt("s3cret", owner=ADA, name="TOKEN")
        assert decrypted(again, NEW) == "s3cret"
        assert again.startswith(both.prefix)
        assert (both.needs_rotation(again), both.needs_rotation(ciphertext(key=OLD)), both.needs_rotation("")) == (
            False,
            True,
            True,
        )

    def test_missing_key_is_named_in_the_error(self) -> None:
        with pytest.raises(DecryptionError, match="unknown key"):
            decrypted(ciphertext(key=OLD), NEW)

    @pytest.mark.parametrize(
        "corrupt",
        [
            lambda text: "",
            lambda text: "v1",
            lambda text: "..",
            lambda text: "v1..",
            lambda text: "s3cret",
            lambda text: text.replace("v1.", "v2."),
            lambda text: text.replace("v1.", "v1.ffffffff."),
            lambda text: text[: text.rindex(".") + 1],
            lambda text: text[:12] + "AAAA",
            lambda text: text[:12] + "A" * 17,
            lambda text: text[:12] + "A" * 200,
            lambda text: text[:-8],
            lambda text: text + "AAAA",
            lambda text: text + ".x",
            lambda text: text + "\n",
            lambda text: text[:-4] + "é\0\ud800!",
            lambda text: text[:20] + ("A" if text[20] != "A" else "B") + text[21:],
            lambda text: text.upper(),
        ],
    )
    def test_malformed_ciphertext_raises_a_decryption_error(self, corrupt: Callable[[str], str]) -> None:
        with pytest.raises(DecryptionError):
            decrypted(corrupt(ciphertext("a secret of some length")))

    def test_ciphertext_and_representation_contain_no_key(self) -> None:
        cipher = SecretCipher([OLD])
        assert OLD not in repr(cipher) + cipher.prefix + ciphertext()

    def test_cipher_needs_a_key(self) -> None:
        with pytest.raises(ValueError, match="no encryption key"):
            SecretCipher([])


class TestCipherOfSettings:
    @pytest.mark.parametrize("given", [None, "", " , ", "change-me", "x" * 31, f"{OLD},short"])
    def test_short_keys_disable_encryption(self, given: str | None) -> None:
        assert get_cipher(Settings(api_key_encryption_key=given)) is None  # type: ignore[arg-type]

    def test_first_key_of_the_settings_encrypts_and_every_key_decrypts(self) -> None:
        settings = Settings(api_key_encryption_key=f"{NEW}, {OLD}")  # type: ignore[arg-type]
        cipher = get_cipher(settings)
        assert cipher is not None
        assert cipher.prefix == SecretCipher([NEW]).prefix
        assert cipher.decrypt(ciphertext(key=OLD), owner=ADA, name="TOKEN") == "s3cret"
        assert get_cipher(settings) is cipher
