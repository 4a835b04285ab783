"""Encodings, JSON and hashes."""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64encode

import pytest
from pydantic import JsonValue

from bloxserver.blocks.cel.encodings import ALGORITHMS
from tests.blocks.cel.evaluation import failure, value

VALUES: dict[str, JsonValue] = {
    "url_encode('a b/ü~&=')": "a%20b%2F%C3%BC~%26%3D",
    "'a%20b%2F%C3%BC+%'.url_decode()": "a b/ü+%",
    "base64_encode('hü?>')": "aMO8Pz4=",
    "base64_decode('aMO8Pz4=')": "hü?>",
    "base64_decode('aMO8Pz4')": "hü?>",
    "base64_decode('Pz8_')": "???",
    "base64_decode('aMO8\\r\\nPz4=\\n')": "hü?>",
    "base64_decode('')": "",
    'json_parse(\'{"a": [1, 2.5, null, "ü"]}\').a': [1, 2.5, None, "ü"],
    "json_format({'b': [1, 2.0, null, true, 'ü\"'], 'a': {}})": '{"b":[1,2.0,null,true,"ü\\""],"a":{}}',
    "json_format([timestamp(0), duration('1h'), type(1)])": '["1970-01-01T00:00:00Z",3600.0,"int"]',
    "json_format('x')": '"x"',
    "json_parse(json_format({'a': [1]})) == {'a': [1]}": True,
    "sha256('ü')": hashlib.sha256("ü".encode()).hexdigest(),
    "sha256('ü', 'base64')": b64encode(hashlib.sha256("ü".encode()).digest()).decode(),
    "hmac_sha256('key', 'text')": hmac.new(b"key", b"text", "sha256").hexdigest(),
    "hmac_sha256('key', 'text', 'base64')": b64encode(hmac.new(b"key", b"text", "sha256").digest()).decode(),
}


@pytest.mark.parametrize(("text", "expected"), VALUES.items(), ids=VALUES)
def test_values(text: str, expected: JsonValue) -> None:
    assert value(text) == expected


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_hmac_with_each_algorithm(algorithm: str) -> None:
    assert value(f"hmac('{algorithm}', 'key', 'text')") == hmac.new(b"key", b"text", algorithm).hexdigest()


@pytest.mark.parametrize(
    ("text", "payload", "reason"),
    [
        ("url_decode('%ff')", None, "the result of url_decode is not text in UTF-8"),
        ("url_encode(payload)", "a\ud800", "url_encode does not accept half of a surrogate pair"),
        ("sha256(payload)", "a\ud800", "sha256 does not accept half of a surrogate pair"),
        ("base64_encode(payload)", "a\ud800", "base64_encode does not accept half of a surrogate pair"),
        ("base64_decode('_w')", None, "the result of base64_decode is not text in UTF-8"),
        ("base64_decode('aMO8=x')", None, "base64_decode requires base64"),
        ("base64_decode('a')", None, "base64_decode requires base64"),
        ("base64_decode('ü')", None, "base64_decode requires base64"),
        ("json_parse('{')", None, "json_parse cannot read the text"),
        ("json_parse('[NaN]')", None, "NaN is not JSON"),
        ("json_parse(payload)", "[" * 100_000, "nested too deeply"),
        ("json_parse(payload)", "9" * 5_000, "json_parse cannot read the text"),
        ("json_format(payload)", float("inf"), "json_format cannot write the value"),
        ("json_format(payload)", 10**400, "an integer exceeds 64 bits"),
        ("hmac('md5', 'a', 'b')", None, "'md5' is not an algorithm of hmac; use sha256 or sha512 or sha1"),
        ("hmac_sha256('a', 'b', 'hexa')", None, "'hexa' is not a form of a hash; use hex or base64"),
    ],
)
def test_errors(text: str, payload: JsonValue, reason: str) -> None:
    assert reason in failure(text, payload)
