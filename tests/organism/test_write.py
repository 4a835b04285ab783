"""Written YAML is readable, and every parser reads the same values from it."""

from __future__ import annotations

import json
import random

import pytest
import yaml
from pydantic import JsonValue

from bloxserver.organism import yaml_loader
from bloxserver.organism.write import write, write_listener
from bloxserver.organism.yaml_loader import MAX_DEPTH, is_plain_text, load

TEXTS = [
    "", " ", "x", "two words", "yes", "No", "on", "off", "y", "n", "true", "False", "null", "Null", "~", "none",
    "1", "-7", "+7", "1.0", "1e3", "1E-2", ".5", "-.5", "1.", ".inf", ".nan", "0x1F", "010", "0o17", "0b11",
    "1_000", "12:30:45", "2024-01-01", "2024-01-31T10:00:00Z", "9223372036854775808", "9" * 400, "=", "<<",
    "---", "--- x", "...", "... x", "-", "- a", "?", "? a", ":", ": a", "a:", "a: b", "a:b", "a :b",
    "http://x/y#z", "a #b", "#a", "a#b", "[", "]", "[a]", "{", "}", "{a: b}", "{{ x }}",
    "say {{ payload.name }}!", ",", "a, b", "&a", "*a", "!a", "|", ">", "'", '"', "it's", 'say "x"',
    "both ' and \"", "'quoted'", '"quoted"', "%a", "@a", "`a`", "a\\b", "\\", "C:\\new", " a", "a ", "\ta",
    "a\t", "a\tb", "a\t#b", "\n", "\n\n", "a\n", "a\nb", "a\nb\n", "a\nb\n\n", "\na", " a\nb", "a\n b\n",
    "a\n\n\nb", "a\n  \nb", "a \nb", "a\n\tb", "a\nb ", "a\n  ", "- a\n- b", "a: 1\nb: 2\n", "# a\n# b",
    "---\na\n...\n", "a\rb", "a\r\nb", "\r", "a\x07b", "\x7f", "\x80", "\x85", "a\x85b", "\xa0", "a\xa0b",
    "\xad", "é", "日本語", "😀", "👩\u200d👧 family", "\u2028", "a\u2028b\nc", "\u2029", "\ufeff", "\ufeffa",
    "\ufffd", "\ufffe", "\uffff", "\U0010ffff", "\ue000", "x" * 2000, "word " * 500, "a\n" * 300, "(a)", "$a",
    "/a", ".a", "..a", "_", "a.b.c", "payload.x > 3", 'payload.x == "y"', "'a' in payload", "!payload.ok",
    "a ? b : c", "a && b || c", "\\u0041", "end with colon:",
]  # fmt: skip
VALUES: list[JsonValue] = [
    None, True, False, 0, -7, 2**63 - 1, -(2**63), 0.5, -0.0, 1e300, 5e-324, 1e16, 123456789.125, [], {}, [[]], [{}],
    {"a": []}, [[1, [2, [3]]], 4], [{"a": {"b": [1]}}, [{"c": None}]], {"": ""}, {"a": {"": {}}}, ["a\nb", ["c\nd\n"]],
]  # fmt: skip


@pytest.fixture(params=["c", "python"], autouse=True)
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_loader, "PARSER", yaml.CLoader if request.param == "c" else yaml.SafeLoader)


def exactly(value: JsonValue) -> str:
    """Return a text that distinguishes 1, 1.0 and true, and the order of keys."""
    return json.dumps(value)


def read_back(document: dict[str, JsonValue]) -> str:
    read = load(write(document))
    assert read.problems == []
    return exactly(read.value)


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_every_text_is_read_back_unchanged(text: str) -> None:
    member: dict[str, JsonValue] = {text: text, "after": 1}
    document: dict[str, JsonValue] = {"a": text, "b": [text, text, {"c": text}, [text]], "d": {"e": member}, "z": text}
    assert read_back(document) == exactly(document)


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_every_text_is_text_for_yaml_1_1_parsers(text: str) -> None:
    assert yaml.safe_load(write({"a": text, "b": [text]})) == {"a": text, "b": [text]}


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_every_value_is_read_back_unchanged(value: JsonValue) -> None:
    document: dict[str, JsonValue] = {"a": value, "b": [value, value], "c": {"d": value}}
    assert read_back(document) == exactly(document)


def test_random_documents_are_read_back_unchanged() -> None:
    chance = random.Random(3)  # noqa: S311
    pieces = [*"ab -:#'\"\\{}[],&*!|>%@`?\n\n \t0.", "é", "\x85", "\u2028", "😀"]

    def text() -> str:
        return "".join(chance.choices(pieces, k=chance.randrange(12)))

    def value(depth: int) -> JsonValue:
        kind = chance.randrange(8 if depth < 4 else 5)
        if kind < 4:
            return text()
        if kind == 4:
            return chance.choice([None, True, 3, -0.25])
        if kind < 7:
            return {text(): value(depth + 1) for _ in range(chance.randrange(4))}
        return [value(depth + 1) for _ in range(chance.randrange(4))]

    for _ in range(1000):
        document = {text(): value(0) for _ in range(3)}
        assert read_back(document) == exactly(document), document


def test_deepest_readable_document_is_written() -> None:
    deep: JsonValue = 1
    for level in range(MAX_DEPTH - 1):
        deep = [deep] if level % 2 else {"a": deep}
    document: dict[str, JsonValue] = {"a": deep}
    assert read_back(document) == exactly(document)


def test_number_out_of_range_is_written_and_reported() -> None:
    [problem] = load(write({"a": 10**400})).problems
    assert problem.code == "out_of_range"


def test_only_texts_that_need_quotes_are_quoted() -> None:
    plain = ["two words", "it's", "a.b.c", "payload.x > 3", "http://x/y#z", "C:\\new", 'say "x"', "日本語", "(a)", "a?"]
    document: dict[str, JsonValue] = {"plain": list(plain)}
    assert write(document) == "plain:\n" + "".join(f"  - {text}\n" for text in plain)
    assert write({"a": "yes", "b": "1.0", "c": "{{ x }}", "d": "", "e": 'x: "y"'}) == (
        'a: "yes"\nb: "1.0"\nc: "{{ x }}"\nd: ""\ne: \'x: "y"\'\n'
    )
    assert not is_plain_text("1e3")
    assert is_plain_text("1 e3")


def test_output_format_is_readable() -> None:
    document: dict[str, JsonValue] = {
        "execution": {"timeout_seconds": 60},
        "mine": 1,
        "listeners": [
            {
                "peers": ["b", {"to": "c", "on": "error", "when": "payload.x > 3"}],
                "other": {},
                "prompt": "Be short.\n\n  And kind.\n",
                "name": "a",
                "description": "Answers",
            },
            "no listener",
        ],
        "organism": {"description": "d", "name": "x"},
    }
    assert (
        write(document)
        == """\
organism:
  name: x
  description: d
listeners:
  - name: a
    description: Answers
    prompt: |
      Be short.

        And kind.
    peers:
      - b
      - to: c
        on: error
        when: payload.x > 3
    other: {}
  - no listener
execution:
  timeout_seconds: 60
mine: 1
"""
    )


def test_listener_is_written_with_any_indentation() -> None:
    assert write_listener({"config": {"a": 1}, "name": "x"}, 3) == "   - name: x\n     config:\n       a: 1\n"
