"""Redaction of secrets in every encoding and letter case."""

from __future__ import annotations

import base64
import html
import json
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, quote_plus, urlencode

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from bloxserver.redaction import RedactedText, Redactor, fold, redact

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
    "upper case": str.upper,
    "title case": str.title,
    "reversed": lambda text: text[::-1],
    "reversed upper case": lambda text: text[::-1].upper(),
    "hexadecimal": lambda text: text.encode().hex(),
    "upper-case hexadecimal": lambda text: text.encode().hex().upper(),
    "hexadecimal with colons": lambda text: text.encode().hex(":").upper(),
    "dump of bytes": lambda text: text.encode().hex(" "),
    "every byte percent-encoded": lambda text: "".join(f"%{byte:02X}" for byte in text.encode()),
    "base64 in lower case": lambda text: base64.b64encode(text.encode()).decode().lower(),
    "json in upper case": lambda text: json.dumps({"a": text}).upper(),
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

    def test_letter_case_of_other_alphabets_does_not_matter(self) -> None:
        secrets = {"T": "\u0130zmir-\u03a3\u039f\u03a3-\u00e9t\u00e9"}
        for text in (secrets["T"], secrets["T"].lower(), secrets["T"].upper(), fold(secrets["T"])):
            if len(text) == len(secrets["T"]):
                assert redact(f"\u0130 {text} \u0130", secrets) == "\u0130 [secret T] \u0130"

    def test_text_around_a_secret_keeps_its_letter_case(self) -> None:
        assert redact("Is \u0130T SK-4F1D9C02? YES", {"T": "sk-4f1d9c02"}) == "Is \u0130T [secret T]? YES"


@pytest.mark.parametrize(
    "text", ["", "ABC", "\u0130stanbul", "\u1e9e\ufb01\u03a3", "".join(map(chr, range(1, 0x3000)))]
)
def test_folded_text_has_the_same_length(text: str) -> None:
    assert len(fold(text)) == len(text)
    assert all(len(fold(chr(code))) == 1 for code in range(0x110000))


def test_marks_can_be_equal() -> None:
    redactor = Redactor([("[setting KEYS]", "first-key-4f1d"), ("[setting KEYS]", "second-key-9c02")])
    assert redactor.redact_text("first-key-4f1d, SECOND-KEY-9C02") == "[setting KEYS], [setting KEYS]"


class TestRedactedText:
    @pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
    def test_secret_that_is_split_between_pieces_is_redacted(self, size: int) -> None:
        redactor = Redactor([("[a]", "open-sesame-1"), ("[b]", "sesame-17-door")])
        for said in (
            "x open-sesame-1 y",
            "open-sesame-17-door",
            "open-open-sesame-1sesame-17-door",
            "b3Blbi1zZXNhbWUtMQ==",
            "open-sesame",
            "OPEN-SESAME-1 and \u0130 open-sesame-1",
        ):
            text = RedactedText(redactor)
            parts = [text.add(said[start : start + size]) for start in range(0, len(said), size)]
            assert "".join([*parts, text.end()]) == redactor.redact_text(said)

    def test_only_a_possible_beginning_is_held_back(self) -> None:
        text = RedactedText(Redactor([("[a]", "open-sesame-1")]))
        assert [text.add(piece) for piece in ("We ", "op", "ened it: op", "en-")] == ["We ", "", "opened it: ", ""]
        assert text.end() == "open-"

    @given(st.lists(st.text(alphabet="abc1", max_size=4)))
    def test_no_secret_remains_in_any_division(self, pieces: list[str]) -> None:
        redactor = Redactor([("[x]", "abca1"), ("[y]", "ca1bc"), ("[z]", "aaaa")])
        text = RedactedText(redactor)
        parts = [text.add(piece) for piece in pieces]
        given_out = "".join([*parts, text.end()])
        assert not any(secret in given_out for secret in ("abca1", "ca1bc", "aaaa"))
