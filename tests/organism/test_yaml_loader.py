"""Loading of valid, hostile and unusual YAML."""

import json
import random
from typing import Any

import pytest
import yaml

from bloxserver.organism import yaml_loader
from bloxserver.organism.problems import OrganismError
from bloxserver.organism.yaml_loader import MAX_BYTES, MAX_DEPTH, MAX_NODES, decode, load
from bloxserver.organism.yaml_source import Place


@pytest.fixture(params=["c", "python"], autouse=True)
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs on both of PyYAML's parsers."""
    monkeypatch.setattr(yaml_loader, "PARSER", yaml.CLoader if request.param == "c" else yaml.SafeLoader)


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        *[("", None), ("~", None), ("null", None), ("true", True), ("False", False)],
        *[("0", 0), ("-7", -7), ("+7", 7), ("9223372036854775807", 2**63 - 1), ("-9223372036854775808", -(2**63))],
        *[("1.5", 1.5), ("-.5", -0.5), ("1.", 1.0), ("1e3", 1000.0), ("1E-2", 0.01)],
        *[(text, text) for text in ("yes", "no", "on", "off", "y", "N", "tRue", "none")],
        *[(text, text) for text in ("2024-01-31", "2024-13-45", "2024-01-31T10:00:00Z", "12:30:45", "1:30.5")],
        *[(text, text) for text in ("010", "0o17", "0x1F", "0b11", "0b_", "0x_", "1_000", "1e", "=", "+", ".")],
        *[('"null"', "null"), ("'1'", "1"), ('"<<"', "<<"), ('"é\\u20ac"', "é€"), ('".nan"', ".nan")],
        ("|\n  1\n", "1\n"),
        ("[1, {a: [x]}, ]", [1, {"a": ["x"]}]),
        ("{}", {}),
    ],
)
def test_scalars_become_json_values(scalar: str, value: Any) -> None:
    document = load(f"a: {scalar}")
    assert document.problems == []
    assert json.dumps(document.value) == json.dumps({"a": value})


@pytest.mark.parametrize(
    ("text", "code", "place"),
    [
        ("", "wrong_type", (1, 1)),
        ("# nothing\n", "wrong_type", (1, 1)),
        ("--- just text", "wrong_type", (1, 5)),
        ("\n- a\n- b", "wrong_type", (2, 1)),
        ("a: 1\n---\nb: 2", "yaml_limit", (2, 1)),
        ("a: 1\n" + "---\n" * 50_000, "yaml_limit", (2, 1)),
        ("a: &a [1]\nb: *a", "yaml_limit", (2, 4)),
        ("a: &a [*a]", "yaml_limit", (1, 8)),
        ("a: !!set {x}", "yaml_limit", (1, 4)),
        ("a: !!binary aGVsbG8=", "yaml_limit", (1, 4)),
        ("a: !!python/object/apply:os.system [id]", "yaml_limit", (1, 4)),
        ("a: !!python/name:os.system x", "yaml_limit", (1, 4)),
        ("!own\na: 1", "yaml_limit", (1, 1)),
        ("a: " + "[" * 100_000, "yaml_limit", (1, 67)),
        ("{a: " * 60_000, "yaml_limit", (1, 4 * MAX_DEPTH + 1)),
        ("- " * 100_000, "yaml_limit", (1, 2 * MAX_DEPTH + 1)),
        ("a: [" + "1," * MAX_NODES + "]", "yaml_limit", (1, 5 + 2 * (MAX_NODES - 3))),
        ("a: " + "é" * (MAX_BYTES // 2), "yaml_limit", (1, 1)),
        ("a: 1\nb: x\0y", "yaml_syntax", (2, 5)),
        ("a: \ud800", "yaml_syntax", (1, 4)),
        ("a: x\x07", "yaml_syntax", (1, 5)),
        ("a:\n\t- b", "yaml_syntax", (2, 1)),
        ("a: 1\nb: 'open\nc: 2\n", "yaml_syntax", (2, 4)),
        ("a: [1, 2\n", "yaml_syntax", (1, 4)),
        ("a: b: c", "yaml_syntax", (1, 5)),
        ("a: 1\n b: 2", "yaml_syntax", (2, 3)),
        ("a: @x", "yaml_syntax", (1, 4)),
        ("%YAML 1." + "9" * 5000 + "\n---\na: 1", "yaml_syntax", None),
        (r'a: "\ud83d"', "yaml_syntax", None),
        (r'a: "\ude00\ud83d"', "yaml_syntax", None),
        (r'a: "\ud83d\ud83d\ude00"', "yaml_syntax", None),
        (r'a: "\\\ude00"', "yaml_syntax", None),
        ("a: x\u2028y\nb: z\n c: d", "yaml_syntax", (3, 3)),
        (r'a: "\U99999999"', "yaml_syntax", None),
        (r'a: "\UFFFFFFFF"', "yaml_syntax", None),
    ],
)
def test_unreadable_documents_are_rejected_with_their_place(
    text: str, code: str, place: tuple[int, int] | None
) -> None:
    try:
        problems = load(text).problems
    except OrganismError as error:
        problems = error.problems
    [problem] = problems
    assert problem.code == code
    assert problem.hint
    assert place is None or (problem.line, problem.column) == place


@pytest.mark.parametrize(
    ("text", "code", "place", "value"),
    [
        ("a: 1\nb: 2\na: {x: [3]}\nc: 4", "duplicate_key", (3, 1), {"a": 1, "b": 2, "c": 4}),
        ("b: {k: 1, 'k': 2}", "duplicate_key", (1, 11), {"b": {"k": 1}}),
        ("a: 1\n<<: {b: 2}", "yaml_limit", (2, 1), {"a": 1}),
        ("1: x\na: 2", "wrong_type", (1, 1), {"a": 2}),
        ("a: 2\n~: x", "wrong_type", (2, 1), {"a": 2}),
        ("? [x, y]\n: 1\n", "wrong_type", (1, 3), {}),
        (r'a: "x\0y"', "yaml_syntax", (1, 4), {"a": ""}),
        ("a: .nan", "out_of_range", (1, 4), {"a": ".nan"}),
        ("a: -.inf", "out_of_range", (1, 4), {"a": "-.inf"}),
        ("a: 1e999", "out_of_range", (1, 4), {"a": "1e999"}),
        ("a: 9223372036854775808", "out_of_range", (1, 4), {"a": "9223372036854775808"}),
        ("a: " + "9" * 5000, "out_of_range", (1, 4), {"a": "9" * 5000}),
    ],
)
def test_recoverable_problems_are_reported(text: str, code: str, place: tuple[int, int], value: Any) -> None:
    document = load(text)
    [problem] = document.problems
    assert (problem.code, problem.line, problem.column) == (code, *place)
    assert problem.hint
    assert document.value == value


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("a:\n\t- b", "tabs"),
        ("a:\n  b: |\n    x\n\ty: 1", "tabs"),
        ("a: b: c", "quotes around a text with a colon"),
        ("a: 1\n b: 2", "indent the line like its neighbours"),
        ("a: @x", "put the text into quotes"),
        ("a: *", "put the text into quotes"),
        ("a: 'open", "add the quote"),
        (r'a: "\d"', "single quotes"),
        ("a: [1, 2", "bracket"),
        ("a: {b: 1, c\nd: 2", "bracket"),
        ("a:\n  - b\n c: 1", "indent"),
        ("b: 1\na:\n  - x\n  y: 2", "indent"),
        ("a: 1\nb\nc: 2", "add a colon"),
        ("a: *b\nb: &b 1", "write the value instead of the alias"),
        ("a: }", "check this line"),
    ],
)
def test_problems_have_hints(text: str, hint: str) -> None:
    with pytest.raises(OrganismError) as caught:
        load(text)
    assert hint in caught.value.problems[0].hint


@pytest.mark.parametrize(
    ("data", "place"), [(b"\xff", (1, 1)), (b"a: 1\nb: \xc3\xa9\xc3", (2, 5)), (b"\xef\xbb\xbfa\xff", (1, 2))]
)
def test_invalid_utf_8_is_rejected_with_its_place(data: bytes, place: tuple[int, int]) -> None:
    assert decode(b"\xef\xbb\xbfa: 1") == "a: 1"
    with pytest.raises(OrganismError) as caught:
        decode(data)
    [problem] = caught.value.problems
    assert (problem.code, problem.line, problem.column) == ("yaml_syntax", *place)


def test_escaped_lone_surrogates_are_rejected() -> None:
    try:
        problems = load(r'a: "\ud800"').problems
    except OrganismError as error:
        problems = error.problems
    assert [problem.code for problem in problems] == ["yaml_syntax"]
    assert "surrogate" in problems[0].message or "pair" in problems[0].hint


def test_json_documents_are_read_as_json() -> None:
    value: dict[str, Any] = {
        "emoji 😀": "😀😀 \U0001f30d é \ue000 \uf8ff",
        "literal": r"\ud83d\ude00 and \\ud83d\ude00",
        "breaks": ["a\u2028b", "a\u2029b", "a\x85b", "\u2028", "x\r\ny"],
        "last": "\U0010ffff",
    }
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False), json.dumps(value, indent=2)):
        document = load(text)
        assert document.value == value
        assert document.problems == []


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        (r'"\ud83d\ude00"', "😀"),
        (r'"\uD83D\uDE00\ud83d\ude01"', "😀😁"),
        (r'"\\ud83d\\ude00"', r"\ud83d\ude00"),
        (r'"\\\ud83d\ude00"', "\\😀"),
        (r"\ud83d\ude00", r"\ud83d\ude00"),
        (r"'\ud83d\ude00'", r"\ud83d\ude00"),
        ("|-\n  \\ud83d\\ude00", r"\ud83d\ude00"),
        ("'\ue000\ue001\ue002\ue003\u2028'", "\ue000\ue001\ue002\ue003\u2028"),
    ],
)
def test_surrogate_pair_escapes_are_read_in_double_quotes_only(scalar: str, value: str) -> None:
    document = load(f"a: {scalar}\nb: 1")
    assert document.value == {"a": value, "b": 1}


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85"])
@pytest.mark.parametrize("text", ["{c}", "a{c}b", "'{c} a'", '"a {c}"', "|-\n  a{c}b: c", "a # b{c}c"])
def test_yaml_1_1_line_breaks_are_ordinary_characters(text: str, character: str) -> None:
    written = text.replace("{c}", character)
    document = load(f"before: x\na: {written}\nafter: y{character}\nlast: z")
    assert document.problems == []
    assert [*document.value] == ["before", "a", "after", "last"]
    lines = written.count("\n")
    assert document.keys["last",] == Place(4 + lines, 1)
    assert document.value["after"] == f"y{character}"
    shown = written.partition(" # ")[0].strip("'\"").removeprefix("|-\n  ")
    assert document.value["a"] == shown


def test_places_count_characters_after_escapes_and_line_separators() -> None:
    document = load('a: {x: "\\ud83d\\ude00", y: "\u2028", z: 1}')
    assert document.keys["a", "y"] == Place(1, 24)
    assert document.keys["a", "z"] == Place(1, 32)
    document = load('a: "\u2028\u2029\x85"\nb: "\u2028\u2029\x85 {{ x }}"')
    assert document.place_within(("b",), "{{ x }}") == Place(2, 9)


def test_tolerant_loading_continues_after_unsupported_syntax() -> None:
    text = "a: *x\nb: !!set {c: 1}\nd: \x07e\nf: g\n---\nh: i"
    with pytest.raises(OrganismError) as caught:
        load(text)
    document = load(text, tolerant=True)
    places = [(problem.line, problem.column) for problem in document.problems]
    assert sorted(places) == [(1, 4), (2, 4), (3, 4), (5, 1)]
    assert caught.value.problems == document.problems
    assert document.value == {"a": None, "b": {"c": 1}, "d": "\ufffde", "f": "g"}


def test_place_within_locates_a_part_of_a_text() -> None:
    document = load('a: "{{ x }} {{ x }}"\nb: |\n  one\n  two {{ y }}\nc: "\\x7b{ z }}"\n')
    first = document.place_within(("a",), "{{ x }}")
    assert first == Place(1, 5)
    assert document.place_within(("a",), "{{ x }}", first) == Place(1, 13)
    assert document.place_within(("b",), "{{ y }}") == Place(4, 7)
    assert document.place_within(("c",), "{{ z }}") == Place(5, 4)


def test_places_of_keys_and_values_are_recorded() -> None:
    document = load('organism:\n  name: é\n  "tags": [a, {b: 1}]\n')
    path = ("organism", "tags", 1, "b")
    assert document.place_of(("organism", "name")) == Place(2, 9)
    assert document.place_of_key(("organism", "tags")) == Place(3, 3)
    assert document.place_of_key(path) == Place(3, 16)
    assert document.place_of(path) == Place(3, 19)
    assert document.place_of((*path, "deeper", 0)) == Place(3, 19)


def test_documents_at_the_limits_are_accepted() -> None:
    nested = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert load(f"a: {nested}").problems == []
    assert len(load("a: " + "x" * (MAX_BYTES - 3)).value) == 1
    assert load("a: [" + "1," * (MAX_NODES - 3) + "]").problems == []


def test_random_texts_raise_organism_errors_only() -> None:
    chance = random.Random(20_240_131)  # noqa: S311
    seed = 'organism: {name: x}\nlisteners:\n  - name: "a\\n"\n    peers: [&a b, *a]\n    <<: !!set {1, .nan, 0x1}\n'
    alphabet = list("[]{},:-?*&!|>'\"%@`#~<=\n\t\r\\0x1e.é\0\ud800\x85\u2028 ")
    for case in range(2000):
        if case % 4 == 0:
            text = chance.randbytes(chance.randrange(200)).decode(chance.choice(["latin-1", "utf-8"]), "replace")
        elif case % 4 == 1:
            text = "".join(chance.choices(alphabet, k=chance.randrange(200)))
        else:
            letters = list(seed)
            for _ in range(chance.randrange(1, 8)):
                at = chance.randrange(len(letters))
                letters[at : at + chance.randrange(3)] = chance.choices(alphabet, k=chance.randrange(3))
            text = "".join(letters)
        try:
            document = load(text)
        except OrganismError as error:
            assert error.problems  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
        else:
            json.dumps(document.value, allow_nan=False).encode()
