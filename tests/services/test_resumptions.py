"""Answers to the questions of `wait.webhook` listeners."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import pytest

from bloxserver.blocks.wait_webhook import WaitWebhookConfig
from bloxserver.errors import Unprocessable
from bloxserver.services.resumptions import FORM, MAX_BODY_BYTES, Answer, BodyTooLarge, read_answer

NO_FORM = WaitWebhookConfig()
FIELDS: list[dict[str, Any]] = [
    {"name": "text", "type": "text"},
    {"name": "number", "type": "number"},
    {"name": "boolean", "type": "boolean"},
    {"name": "choice", "type": "select", "options": ["a", "b"]},
]
CONFIG = WaitWebhookConfig.model_validate({"fields": FIELDS})
REQUIRED = WaitWebhookConfig.model_validate({"fields": [field | {"required": True} for field in FIELDS]})
EMPTY = {"text": None, "number": None, "boolean": False, "choice": None}


def form(config: WaitWebhookConfig, *pairs: tuple[str, str]) -> Answer:
    return read_answer(config, urlencode(pairs).encode(), f"{FORM}; charset=utf-8")


def sent(config: WaitWebhookConfig, value: Any) -> Answer:
    return read_answer(config, json.dumps(value).encode(), "application/json")


def reasons(config: WaitWebhookConfig, value: Any) -> Any:
    with pytest.raises(Unprocessable) as caught:
        sent(config, value)
    return caught.value.details


@pytest.mark.parametrize(
    ("body", "stored"),
    [(b'{"a": 1}', '{"a": 1}'), (b"text", "text"), (b"", None), (b"\xff", "data:text/plain;base64,/w==")],
)
def test_body_without_a_form_is_stored_as_an_input_is(body: bytes, stored: str | None) -> None:
    assert read_answer(NO_FORM, body, "text/plain") == Answer(stored, None)


def test_form_without_fields_is_an_object() -> None:
    answer = form(NO_FORM, ("a", "1"), ("a", "2"), ("b", ""), ("answered_by", " Ada\0 "))
    assert answer == Answer('{"a": "2", "b": ""}', "Ada\ufffd")


@pytest.mark.parametrize(
    ("pairs", "values"),
    [
        ([], EMPTY),
        ([("text", " "), ("number", ""), ("choice", "")], EMPTY),
        ([("text", "t"), ("choice", "b")], EMPTY | {"text": "t", "choice": "b"}),
        ([("boolean", "true")], EMPTY | {"boolean": True}),
        ([("number", " -17 ")], EMPTY | {"number": -17}),
        ([("number", "1e3")], EMPTY | {"number": 1000.0}),
        ([("number", "+.5")], EMPTY | {"number": 0.5}),
    ],
)
def test_values_of_a_form(pairs: list[tuple[str, str]], values: Any) -> None:
    payload = form(CONFIG, *pairs).payload
    assert payload is not None
    assert json.loads(payload) == values


@pytest.mark.parametrize("number", ["nan", "inf", "1e999", "x", "1_0", ".", "٣", "9" * 300])
def test_number_of_a_form_is_finite(number: str) -> None:
    with pytest.raises(Unprocessable) as caught:
        form(CONFIG, ("number", number))
    assert caught.value.details == {"number": "Use a number"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"text": 1}, {"text": "Use text"}),
        ({"text": "x" * 10_001}, {"text": "Use at most 10000 characters"}),
        ({"number": "1"}, {"number": "Use a number"}),
        ({"number": True}, {"number": "Use a number"}),
        ({"number": 10**400}, {"number": "Use a number"}),
        ({"boolean": "true"}, {"boolean": "Use true or false"}),
        ({"choice": "c"}, {"choice": "Use one of: a, b"}),
        ({"other": 1}, {"other": "There is no such field"}),
        ([], {"body": "The body must be a form or a JSON object"}),
    ],
)
def test_reasons_name_the_fields(value: Any, expected: Any) -> None:
    assert reasons(CONFIG, value) == expected


def test_json_members_have_types() -> None:
    values = {"text": "t", "number": 1.5, "boolean": True, "choice": "a"}
    assert sent(CONFIG, values | {"answered_by": "Ada"}) == Answer(json.dumps(values), "Ada")


def test_required_fields_need_values() -> None:
    assert reasons(REQUIRED, {"boolean": False}).keys() == EMPTY.keys()


def test_button_is_one_of_the_buttons() -> None:
    config = WaitWebhookConfig.model_validate({"buttons": [{"value": "yes"}, {"value": "no"}]})
    assert sent(config, {"button": "no"}) == Answer('{"button": "no"}', None)
    for value in ({}, {"button": "maybe"}, {"button": ["yes"]}):
        assert reasons(config, value) == {"button": "Use one of: yes, no"}


@pytest.mark.parametrize("body", [b"[" * 60_000, b"{", b"\xff", b'"\\ud800"'])
def test_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(Unprocessable):
        read_answer(CONFIG, body, "application/json")


def test_text_is_stored_without_characters_that_databases_refuse() -> None:
    body = b'{"text": "\\u0000\\ud800"}'
    assert read_answer(CONFIG, body, "application/json").payload == json.dumps(
        EMPTY | {"text": "\ufffd?"}, ensure_ascii=False
    )


def test_body_has_a_maximum_size() -> None:
    with pytest.raises(BodyTooLarge):
        read_answer(NO_FORM, b"x" * (MAX_BODY_BYTES + 1), None)


def test_form_has_a_maximum_number_of_members() -> None:
    with pytest.raises(Unprocessable):
        form(NO_FORM, *((str(number), "") for number in range(1_001)))
