"""Encryption of secrets for their owner, and redaction of secrets in every encoding."""

from __future__ import annotations

import base64
import html
import json
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, quote_plus, urlencode
from uuid import UUID, uuid4

import httpx
import pytest
from pydantic import JsonValue

from bloxserver.encryption import DecryptionError, SecretCipher, get_cipher, redact
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


SECRETS = {
    "plain": "sk-4f1d9c02b7e8a6539d",
    "password": 'p@ss/"w\\ord"+é&<🌍>\'%?',
    "spaces": "correct horse battery staple",
    "lines": "-----BEGIN KEY-----\nMIIEvQIBADANBgkq/+hkiG9w0\n-----END KEY-----\n",
    "short": "a+/b",
}
ENCODINGS: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "like a host": str.lower,
    "json": lambda text: json.dumps({"a": text}),
    "json in unicode": lambda text: json.dumps({"a": text}, ensure_ascii=False),
    "json with escaped slashes": lambda text: json.dumps({"a": text}).replace("/", "\\/"),
    "json within json": lambda text: json.dumps({"body": json.dumps({"a": text})}),
    "python": lambda text: repr([text]),
    "form": lambda text: urlencode({"a": text, "b": 1}),
    "path": quote,
    "all percent-encoded": lambda text: quote(text, safe=""),
    "in lower case": lambda text: re.sub("%..", lambda code: code[0].lower(), quote(text, safe="")),
    "plus": quote_plus,
    "like a browser": lambda text: quote(text, safe="!'()*"),
    "query of httpx": lambda text: str(httpx.URL("http://h/", params={"q": text})),
    "raw query of httpx": lambda text: str(httpx.URL(f"http://h/?q={text}".replace("\n", ""))),
    "html": html.escape,
    "html text": lambda text: html.escape(text, quote=False),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 for addresses": lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
    **{
        f"basic auth of {user!r}": lambda text, user=user: base64.b64encode(f"{user}:{text}".encode()).decode()  # type: ignore[misc]
        for user in ("", "u", "us", "use", "user")
    },
    "user of basic auth": lambda text: base64.b64encode(f"{text}:x".encode()).decode(),
}


NOT_TO_BE = [
    ("short", "basic auth"),  # shorter fragments of base64 occur by coincidence
    ("short", "user of basic auth"),
    ("lines", "raw query of httpx"),  # an address has no line breaks
]
CASES = [
    (name, encoding)
    for name in SECRETS
    for encoding in ENCODINGS
    if not any(name == one and encoding.startswith(other) for one, other in NOT_TO_BE)
]


class TestRedact:
    @pytest.mark.parametrize(("name", "encoding"), CASES)
    def test_secret_is_redacted_in_every_encoding(self, name: str, encoding: str) -> None:
        secret = SECRETS[name]
        shown = ENCODINGS[encoding](secret)
        answer: Any = redact({"before": f"<{shown}>", shown: [1, shown]}, SECRETS)
        mark = f"[secret {name}]"
        assert mark in answer["before"]
        (key,) = answer.keys() - {"before"}
        assert mark in key
        assert mark in answer[key][1]
        left = len(answer["before"]) - len(mark) - len("<>") - len(ENCODINGS[encoding](""))
        assert left <= 6, "what is around it, and a character that base64 shares with its neighbours"

    def test_text_around_a_secret_is_unchanged(self) -> None:
        value: JsonValue = {"a": [None, True, 0.5, 12, "text", {"plain": []}], "": "sk-4f1d9c02b7e8a653"}
        assert redact(value, SECRETS) is value
        told = f"see {SECRETS['plain']}, twice {SECRETS['plain']}"
        assert redact([value, told], SECRETS) == [value, "see [secret plain], twice [secret plain]"]
        assert value == {"a": [None, True, 0.5, 12, "text", {"plain": []}], "": "sk-4f1d9c02b7e8a653"}

    @pytest.mark.parametrize("value", [None, True, 0, "", [], {}, "text"])
    def test_value_is_unchanged_without_secrets(self, value: JsonValue) -> None:
        assert redact(value, {}) == value
        assert redact(value, {"EMPTY": ""}) == value

    def test_longer_secret_is_redacted_before_a_shorter_one_within_it(self) -> None:
        secrets = {"A": "horse", "B": "horse battery", "C": "battery"}
        assert redact("horse battery horse battery battery", secrets) == "[secret B] [secret B] [secret C]"

    def test_inserted_marks_are_not_redacted_again(self) -> None:
        secrets = {"KEY": "long-enough-value", "X": "secret", "Y": "[secret KEY]"}
        assert redact("long-enough-value secret", secrets) == "[secret KEY] [secret X]"

    @pytest.mark.parametrize("short", ["a", "42", "abc", "é"])
    def test_short_secret_is_redacted_only_as_a_whole_text(self, short: str) -> None:
        assert redact([short, f"{short}{short}", {short: f" {short}"}, 42], {"S": short}) == [
            "[secret S]",
            f"{short}{short}",
            {"[secret S]": f" {short}"},
            42,
        ]

    def test_secret_that_becomes_a_number_is_redacted(self) -> None:
        assert redact([12345678, 12345679, 0.5, True], {"PIN": "12345678"}) == ["[secret PIN]", 12345679, 0.5, True]
        assert redact([1234, 10**5000], {"PIN": "01234", "LONG": "9" * 5000}) == [1234, 10**5000]

    def test_secret_without_its_outer_white_space_is_redacted(self) -> None:
        assert redact("Bearer token-4f1d9c", {"T": " token-4f1d9c\n"}) == "Bearer [secret T]"

    def test_deeply_nested_value_is_redacted(self) -> None:
        value: JsonValue = "token-4f1d9c"
        for _ in range(50_000):
            value = [value]
        answer = redact(value, {"T": "token-4f1d9c"})
        while isinstance(answer, list):
            (answer,) = answer
        assert answer == "[secret T]"

    @pytest.mark.parametrize(
        ("text", "secret"),
        [
            ("a" * 5 * 2**20, "a" * 4095 + "b" + "a" * 4096),
            ("!" * 5 * 2**20 + "a", "!" * 8000 + "a?"),
            ("\\" * 5 * 2**20, "\\" * 8000 + '"'),
            ("%2" * 5 * 2**19, "%2" * 4000 + "%3"),
            ("abcd" * 5 * 2**18, "abcd"),
        ],
    )
    def test_redaction_of_five_mebibytes_is_fast(self, text: str, secret: str) -> None:
        started = time.process_time()
        redact([text], {"S": secret})
        assert time.process_time() - started < 5, "a search that goes back takes minutes"
