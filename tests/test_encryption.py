"""Sealed secrets open for whom they were sealed, and redacted ones are not to be found in any form."""

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

from bloxserver.encryption import DecryptionError, SecretCipher, cipher_of, redact
from bloxserver.settings import Settings

OLD = "old-key-of-an-operator-7c1f0e5b2a"
NEW = "new-key-of-an-operator-93d4a86b1f"
ADA, BOB = UUID(int=1), UUID(int=2)


def ciphertext(text: str = "s3cret", key: str = OLD) -> str:
    return SecretCipher([key]).encrypt(text, owner=ADA, name="TOKEN")


def opened(text: str, *keys: str, owner: UUID = ADA, name: str = "TOKEN") -> str:
    return SecretCipher(keys or [OLD]).decrypt(text, owner=owner, name=name)


class TestSealer:
    @pytest.mark.parametrize("text", ["x", "s3cret", "ä🌍\n\t\"'", "x" * 8192, "🌍" * 8192])
    def test_what_was_sealed_opens(self, text: str) -> None:
        closed = ciphertext(text)
        assert opened(closed) == text
        version, key_id, content = closed.split(".")
        assert (version, len(key_id), len(content) % 4 != 1) == ("v1", 8, True)
        assert closed.isascii()
        assert len(text) < 4 or text not in closed

    def test_no_two_are_alike(self) -> None:
        assert len({ciphertext() for _ in range(100)}) == 100

    @pytest.mark.parametrize(
        ("owner", "name"), [(BOB, "TOKEN"), (ADA, "OTHER"), (ADA, "token"), (ADA, ""), (ADA, "\ud800"), (uuid4(), "X")]
    )
    def test_it_opens_for_nobody_else_and_under_no_other_name(self, owner: UUID, name: str) -> None:
        with pytest.raises(DecryptionError):
            opened(ciphertext(), owner=owner, name=name)

    def test_each_key_opens_and_the_first_seals(self) -> None:
        both = SecretCipher([NEW, OLD])
        assert both.decrypt(ciphertext(key=OLD), owner=ADA, name="TOKEN") == "s3cret"
        assert both.decrypt(ciphertext(key=NEW), owner=ADA, name="TOKEN") == "s3cret"
        again = both.encrypt("s3cret", owner=ADA, name="TOKEN")
        assert opened(again, NEW) == "s3cret"
        assert again.startswith(both.prefix)
        assert (both.needs_rotation(again), both.needs_rotation(ciphertext(key=OLD)), both.needs_rotation("")) == (
            False,
            True,
            True,
        )

    def test_a_key_that_is_gone_is_said_to_be(self) -> None:
        with pytest.raises(DecryptionError, match="key that is not here"):
            opened(ciphertext(key=OLD), NEW)

    @pytest.mark.parametrize(
        "spoil",
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
    def test_whatever_is_wrong_it_is_unreadable(self, spoil: Callable[[str], str]) -> None:
        with pytest.raises(DecryptionError):
            opened(spoil(ciphertext("a secret of some length")))

    def test_the_key_is_not_the_text_itself_and_not_told(self) -> None:
        cipher = SecretCipher([OLD])
        assert OLD not in repr(cipher) + cipher.prefix + ciphertext()

    def test_without_a_key_there_is_none(self) -> None:
        with pytest.raises(ValueError, match="no key"):
            SecretCipher([])


class TestSealerOfSettings:
    @pytest.mark.parametrize("given", [None, "", " , ", "change-me", "x" * 31, f"{OLD},short"])
    def test_without_keys_of_enough_bytes_there_is_none(self, given: str | None) -> None:
        assert cipher_of(Settings(api_key_encryption_key=given)) is None  # type: ignore[arg-type]

    def test_the_first_key_seals_and_all_open(self) -> None:
        settings = Settings(api_key_encryption_key=f"{NEW}, {OLD}")  # type: ignore[arg-type]
        cipher = cipher_of(settings)
        assert cipher is not None
        assert cipher.prefix == SecretCipher([NEW]).prefix
        assert cipher.decrypt(ciphertext(key=OLD), owner=ADA, name="TOKEN") == "s3cret"
        assert cipher_of(settings) is cipher


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
    ("short", "basic auth"),  # shorter pieces of base64 stand anywhere by chance
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
    def test_no_encoding_brings_a_secret_back(self, name: str, encoding: str) -> None:
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

    def test_the_rest_stays_as_it_was(self) -> None:
        value: JsonValue = {"a": [None, True, 0.5, 12, "text", {"plain": []}], "": "sk-4f1d9c02b7e8a653"}
        assert redact(value, SECRETS) is value
        told = f"see {SECRETS['plain']}, twice {SECRETS['plain']}"
        assert redact([value, told], SECRETS) == [value, "see [secret plain], twice [secret plain]"]
        assert value == {"a": [None, True, 0.5, 12, "text", {"plain": []}], "": "sk-4f1d9c02b7e8a653"}

    @pytest.mark.parametrize("value", [None, True, 0, "", [], {}, "text"])
    def test_without_secrets_nothing_changes(self, value: JsonValue) -> None:
        assert redact(value, {}) == value
        assert redact(value, {"EMPTY": ""}) == value

    def test_the_longer_one_is_meant(self) -> None:
        secrets = {"A": "horse", "B": "horse battery", "C": "battery"}
        assert redact("horse battery horse battery battery", secrets) == "[secret B] [secret B] [secret C]"

    def test_what_was_put_in_is_not_looked_at_again(self) -> None:
        secrets = {"KEY": "long-enough-value", "X": "secret", "Y": "[secret KEY]"}
        assert redact("long-enough-value secret", secrets) == "[secret KEY] [secret X]"

    @pytest.mark.parametrize("short", ["a", "42", "abc", "é"])
    def test_short_ones_go_only_where_they_are_the_whole_text(self, short: str) -> None:
        assert redact([short, f"{short}{short}", {short: f" {short}"}, 42], {"S": short}) == [
            "[secret S]",
            f"{short}{short}",
            {"[secret S]": f" {short}"},
            42,
        ]

    def test_one_that_comes_back_as_a_number_goes_too(self) -> None:
        assert redact([12345678, 12345679, 0.5, True], {"PIN": "12345678"}) == ["[secret PIN]", 12345679, 0.5, True]
        assert redact([1234, 10**5000], {"PIN": "01234", "LONG": "9" * 5000}) == [1234, 10**5000]

    def test_white_space_that_a_server_cuts_off_hides_nothing(self) -> None:
        assert redact("Bearer token-4f1d9c", {"T": " token-4f1d9c\n"}) == "Bearer [secret T]"

    def test_a_value_may_be_of_any_depth(self) -> None:
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
    def test_five_mebibytes_are_quick_whatever_is_in_them(self, text: str, secret: str) -> None:
        started = time.process_time()
        redact([text], {"S": secret})
        assert time.process_time() - started < 5, "a search that goes back takes minutes"
