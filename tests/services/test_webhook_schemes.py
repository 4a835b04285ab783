"""The schemes of signatures: examples of the senders' documentation, and junk."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.datastructures import Headers

from bloxserver.errors import Unprocessable
from bloxserver.services.webhook_schemes import (
    MAX_PARSED_BYTES,
    Signature,
    SignatureInvalid,
    check_signature,
    signature_of,
)

STANDARD_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SLACK_BODY = (
    b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V"
    b"&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text="
    b"&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN"
    b"&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
)
STRIPE_BODY = b'{"id": "evt_1", "object": "event"}'


def at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def stripe_signature(body: bytes, seconds: int) -> str:
    return f"t={seconds},v1={hmac.new(b'whsec_of-stripe', f'{seconds}.'.encode() + body, 'sha256').hexdigest()},v0=00"


class Sent:
    """A request of a sender, and the config and the secret with which it is valid."""

    def __init__(
        self, config: dict[str, Any], secret: str, body: bytes, headers: dict[str, str], seconds: int = 0
    ) -> None:
        self.config = config
        self.secret = secret
        self.body = body
        self.headers = headers
        self.seconds = seconds

    @property
    def signature(self) -> Signature:
        found = signature_of({"signature": self.config})
        assert found is not None
        return found

    def verify(self, *secrets: str, body: bytes | None = None, headers: Any = None, late: float = 0) -> None:
        moment = at(self.seconds) + timedelta(seconds=late)
        sent = Headers(self.headers if headers is None else headers)
        self.signature.verify(secrets or (self.secret,), self.body if body is None else body, sent, moment)


SENT = {
    # https://github.com/standard-webhooks/standard-webhooks, tests of its libraries
    "standard-webhooks": Sent(
        {"scheme": "standard-webhooks"},
        STANDARD_SECRET,
        b'{"test": 2432232314}',
        {
            "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "webhook-timestamp": "1614265330",
            "webhook-signature": "v2,x v1,AAAA v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        },
        1614265330,
    ),
    "svix": Sent(
        {"scheme": "standard-webhooks"},
        STANDARD_SECRET,
        b'{"test": 2432232314}',
        {
            "svix-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "svix-timestamp": "1614265330",
            "svix-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        },
        1614265330,
    ),
    # https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries
    "github": Sent(
        {"scheme": "github"},
        "It's a Secret to Everybody",
        b"Hello, World!",
        {"X-Hub-Signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"},
    ),
    # https://docs.slack.dev/authentication/verifying-requests-from-slack
    "slack": Sent(
        {"scheme": "slack"},
        "8f742231b10e8888abcd99yyyzzz85a5",
        SLACK_BODY,
        {
            "X-Slack-Request-Timestamp": "1531420618",
            "X-Slack-Signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
        },
        1531420618,
    ),
    "stripe": Sent(
        {"scheme": "stripe"},
        "whsec_of-stripe",
        STRIPE_BODY,
        {"Stripe-Signature": stripe_signature(STRIPE_BODY, 1700000000)},
        1700000000,
    ),
    "gitlab": Sent({"scheme": "gitlab"}, "a-secret-token", b"{}", {"X-Gitlab-Token": "a-secret-token"}),
    "hmac": Sent(
        {"scheme": "hmac", "header": "X-Sign", "algorithm": "sha512", "encoding": "base64", "prefix": "h="},
        "geheim-ü-secret",
        b"\xff\x00 body",
        {
            "x-sign": "h="
            + base64.b64encode(hmac.digest("geheim-ü-secret".encode(), b"\xff\x00 body", "sha512")).decode()
        },
    ),
    "basic": Sent(
        {"scheme": "basic", "username": "shop"},
        "pass:word-ü",
        b"",
        {"Authorization": "basic " + base64.b64encode("shop:pass:word-ü".encode()).decode()},
    ),
    "bearer": Sent({"scheme": "bearer"}, "a-long-token", b"x", {"Authorization": "BEARER  a-long-token"}),
}
TIMED = ["standard-webhooks", "svix", "slack", "stripe"]
SIGNING = [*TIMED, "github", "hmac"]
"""Schemes whose signatures cover the body."""


@pytest.mark.parametrize("name", SENT)
def test_request_of_the_sender_is_valid_with_any_of_the_secrets(name: str) -> None:
    sent = SENT[name]
    other = "whsec_" + base64.b64encode(b"x" * 32).decode()
    sent.verify()
    sent.verify(other, sent.secret)
    with pytest.raises(SignatureInvalid, match="does not match"):
        sent.verify(other)


@pytest.mark.parametrize("name", SENT)
def test_secret_is_usable_and_junk_is_not(name: str) -> None:
    SENT[name].signature.check_secret(SENT[name].secret)
    for secret in ("", "short", "x" * 600, "with\nnewline", "with\0nul-character"):
        with pytest.raises(ValueError, match="must"):
            SENT[name].signature.check_secret(secret)


@pytest.mark.parametrize("name", SIGNING)
def test_changed_body_is_rejected(name: str) -> None:
    for body in (SENT[name].body + b" ", b"", SENT[name].body[:-1]):
        with pytest.raises(SignatureInvalid):
            SENT[name].verify(body=body)


@pytest.mark.parametrize("name", TIMED)
def test_timestamp_outside_of_the_tolerance_is_rejected(name: str) -> None:
    sent = SENT[name]
    for late in (-300, 300):
        sent.verify(late=late)
    for late in (-301, 301, 10**9):
        with pytest.raises(SignatureInvalid, match="300 seconds"):
            sent.verify(late=late)
    narrow = Sent(sent.config | {"tolerance_seconds": 5}, sent.secret, sent.body, sent.headers, sent.seconds)
    with pytest.raises(SignatureInvalid, match="5 seconds"):
        narrow.verify(late=6)


@pytest.mark.parametrize("name", ["gitlab", "bearer"])
def test_secret_that_http_would_change_is_refused(name: str) -> None:
    for secret in (" with a space before", "with a space after ", " " * 10):
        with pytest.raises(ValueError, match="must not begin or end"):
            SENT[name].signature.check_secret(secret)


JUNK = [
    "",
    " ",
    ",",
    "=",
    ":",
    "\x00",
    "ÿÿÿÿ",
    "v1",
    "v1,",
    "v1,abc",
    "v1,ÿÿÿÿ",
    "v1,a,b",
    "sha256=",
    "sha256=zz",
    "sha256=abc",
    "t=,v1=",
    "t=1e400,v1=00",
    "t=nan,v1=00",
    "t=-1,v1=00",
    "t=99999999999999999999,v1=00",
    "t=٣,v1=00",
    "Basic",
    "Basic ÿ",
    "Basic !!!!",
    "Bearer",
    "Bearer  ",
    "h=%%%",
    "0" * 10_000,
    "v1,AAAA " * 1_000,
]


@pytest.mark.parametrize("name", SENT)
def test_junk_in_any_header_is_rejected(name: str) -> None:
    sent = SENT[name]
    for header in sent.headers:
        without = {other: value for other, value in sent.headers.items() if other != header}
        with pytest.raises(SignatureInvalid):
            sent.verify(headers=without)
        for junk in JUNK:
            raw = [(key.lower().encode(), value.encode()) for key, value in without.items()]
            headers = Headers(raw=[*raw, (header.lower().encode(), junk.encode())])
            with pytest.raises(SignatureInvalid):
                sent.signature.verify([sent.secret], sent.body, headers, at(sent.seconds))


INVALID: list[Any] = [
    {},
    [],
    "github",
    7,
    True,
    {"scheme": None},
    {"scheme": "unknown"},
    {"scheme": "GitHub"},
    {"scheme": "github", "key": "x"},
    {"scheme": "github", "tolerance_seconds": 5},
    {"scheme": "github", "deduplicate": "yes"},
    {"scheme": "github", "deduplicate": 1},
    {"scheme": "github", "secret": "not a name"},
    {"scheme": "github", "secret": "A\n"},
    {"scheme": "gitlab", "deduplicate": True},
    {"scheme": "stripe", "tolerance_seconds": 0},
    {"scheme": "stripe", "tolerance_seconds": 10**30},
    {"scheme": "stripe", "tolerance_seconds": "300"},
    {"scheme": "stripe", "tolerance_seconds": 3.5},
    {"scheme": "hmac"},
    {"scheme": "hmac", "header": ""},
    {"scheme": "hmac", "header": "a b"},
    {"scheme": "hmac", "header": "X\r\nY"},
    {"scheme": "hmac", "header": "X", "algorithm": "md5"},
    {"scheme": "hmac", "header": "X", "encoding": "binary"},
    {"scheme": "basic"},
    {"scheme": "basic", "username": "a:b"},
]


@pytest.mark.parametrize("config", INVALID, ids=json.dumps)
def test_invalid_signature_in_a_config_is_refused(config: Any) -> None:
    with pytest.raises(ValidationError):
        signature_of({"signature": config})
    with pytest.raises(Unprocessable) as raised:
        check_signature({"signature": config})
    assert all(place.startswith("body.config.signature") for place in raised.value.details or ())


def test_reasons_are_bounded() -> None:
    with pytest.raises(Unprocessable) as raised:
        check_signature({"signature": {"scheme": "github", **{f"x{number}": 1 for number in range(3000)}}})
    assert len(raised.value.details or ()) == 100


def test_config_without_a_signature_accepts_every_sender() -> None:
    assert signature_of({}) is None
    assert signature_of({"signature": None, "target": "x"}) is None


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("standard-webhooks", {}, "msg_p5jXN8AQM9LWM0D4loKWxJek"),
        ("github", {"X-GitHub-Delivery": "d-1"}, "d-1"),
        ("github", {}, None),
        ("stripe", {}, "evt_1"),
        ("slack", {}, None),
    ],
)
def test_id_of_a_delivery_is_read_if_the_option_is_on(name: str, change: dict[str, str], expected: str | None) -> None:
    sent = SENT[name]
    headers = Headers(sent.headers | change)
    assert sent.signature.delivery_id(sent.body, headers) is None
    signature = signature_of({"signature": sent.config | {"deduplicate": True}})
    assert signature is not None
    assert signature.delivery_id(sent.body, headers) == expected


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"null", b"[]", b'"id"', b'{"id": 7}', b'{"id": ""}', b"\xff", b"[" * 60_000),
        b'{"id": "%s"}' % (b"x" * 300),
        b'{"id": "evt_1", "more": "%s"}' % (b"x" * MAX_PARSED_BYTES),
    ],
    ids=lambda body: body[:12].decode(errors="replace"),
)
def test_body_without_an_id_has_none(body: bytes) -> None:
    signature = signature_of({"signature": {"scheme": "stripe", "deduplicate": True}})
    assert signature is not None
    assert signature.delivery_id(body, Headers()) is None


def test_verification_without_secrets_is_rejected() -> None:
    for sent in SENT.values():
        verify: Callable[..., None] = sent.signature.verify
        with pytest.raises(SignatureInvalid, match="no signing secret"):
            verify([], sent.body, Headers(sent.headers), at(sent.seconds))
