"""The functions that encode, decode and hash texts. Texts are encoded in UTF-8."""

from __future__ import annotations

import hmac as keyed_hash
import json
from base64 import b64encode
from binascii import Error, a2b_base64
from collections.abc import Callable
from hashlib import new
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from bloxserver.blocks.cel.values import CHARACTERS_PER_STEP, EvaluationError, Run, is_number, kind_of, to_json_value

ALGORITHMS = ("sha256", "sha512", "sha1")
RESULTS = ("hex", "base64")
ESCAPED_PER_STEP = 4
"""The bytes that are percent-encoded, or escapes that are decoded, in a step."""
HASHED_PER_STEP = 64
PARSED_PER_STEP = 2
"""The characters of JSON that are parsed in a step: with its comma, a list has three."""
STEPS_PER_VALUE = 6
WRITTEN_PER_STEP = 16
"""The characters of texts that are written as JSON in a step: some of them are escaped."""


def url_encode(run: Run, text: str) -> str:
    """Percent-encode all characters except letters, digits and -._~."""
    encoded = _encoded("url_encode", run, text)
    run.budget.consume(len(encoded) // ESCAPED_PER_STEP)
    return quote(encoded, safe="")


def url_decode(run: Run, text: str) -> str:
    """Decode percent-encoded text. A + is a plus sign."""
    encoded = _encoded("url_decode", run, text)
    run.budget.consume(encoded.count(b"%") * 2)
    return _decoded("url_decode", run, unquote_to_bytes(encoded))


def base64_encode(run: Run, text: str) -> str:
    encoded = _encoded("base64_encode", run, text)
    run.budget.consume(2 * len(encoded) // CHARACTERS_PER_STEP)
    return b64encode(encoded).decode()


def base64_decode(run: Run, text: str) -> str:
    """Decode base64 with the characters +/ or -_, with or without padding and breaks. The result must be a text."""
    run.budget.consume(4 * len(text) // CHARACTERS_PER_STEP)
    stripped = text.replace("\n", "").replace("\r", "").rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return _decoded("base64_decode", run, a2b_base64(stripped + "=" * (-len(stripped) % 4), strict_mode=True))
    except (Error, ValueError):
        raise EvaluationError("base64_decode requires base64") from None


def json_parse(run: Run, text: str) -> Any:
    run.budget.consume(len(text) // PARSED_PER_STEP)
    try:
        return json.loads(text, parse_constant=_reject_constant)
    except RecursionError:
        raise EvaluationError("json_parse cannot read the text: it is nested too deeply") from None
    except ValueError as error:
        raise EvaluationError(f"json_parse cannot read the text: {str(error)[:100]}") from None


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def json_format(run: Run, value: Any) -> str:
    """Write a value as compact JSON: times and types as in an answer."""
    _consume_values(run, value)
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=to_json_value)
    except (ValueError, RecursionError):
        raise EvaluationError("json_format cannot write the value: a number or its nesting is too large") from None


def _consume_values(run: Run, value: Any) -> None:
    """Consume the steps for each value in a value. A list that is used twice in an expression is written twice."""
    run.budget.consume(STEPS_PER_VALUE)
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            run.budget.consume(len(value) // WRITTEN_PER_STEP)
        elif isinstance(value, list | dict):
            run.budget.consume(STEPS_PER_VALUE * len(value))
            if isinstance(value, dict):
                run.budget.consume(sum(map(len, value)) // WRITTEN_PER_STEP)
            waiting += value.values() if isinstance(value, dict) else value
        elif is_number(value) and isinstance(value, int) and value.bit_length() > 64:
            raise EvaluationError("an integer exceeds 64 bits")
        elif not is_number(value) and kind_of(value) not in ("null", "a boolean"):
            run.budget.consume(STEPS_PER_VALUE)


def sha256(run: Run, text: str, result: str = "hex") -> str:
    check_result(result)
    encoded = _encoded("sha256", run, text)
    run.budget.consume(len(encoded) // HASHED_PER_STEP)
    return _written(new("sha256", encoded).digest(), result)


def hmac(run: Run, algorithm: str, key: str, text: str, result: str = "hex") -> str:
    check_algorithm(algorithm)
    check_result(result)
    secret, encoded = _encoded("hmac", run, key), _encoded("hmac", run, text)
    run.budget.consume((len(secret) + len(encoded)) // HASHED_PER_STEP)
    return _written(keyed_hash.digest(secret, encoded, algorithm), result)


def hmac_sha256(run: Run, key: str, text: str, result: str = "hex") -> str:
    return hmac(run, "sha256", key, text, result)


def _one_of(names: tuple[str, ...], what: str) -> Callable[[str], None]:
    def check(name: str) -> None:
        if name not in names:
            raise EvaluationError(f"{name[:20]!r} is not {what}; use {' or '.join(names)}")

    return check


check_algorithm = _one_of(ALGORITHMS, "an algorithm of hmac")
check_result = _one_of(RESULTS, "a form of a hash")
"""Both raise `EvaluationError`."""


def _written(digest: bytes, result: str) -> str:
    return digest.hex() if result == "hex" else b64encode(digest).decode()


def _encoded(name: str, run: Run, text: str) -> bytes:
    run.budget.consume(len(text) // CHARACTERS_PER_STEP)
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise EvaluationError(f"{name} does not accept half of a surrogate pair") from None


def _decoded(name: str, run: Run, encoded: bytes) -> str:
    run.budget.consume(len(encoded) // CHARACTERS_PER_STEP)
    try:
        return encoded.decode()
    except UnicodeDecodeError:
        raise EvaluationError(f"the result of {name} is not text in UTF-8") from None
