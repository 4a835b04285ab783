"""Signatures of outgoing webhooks, verified by the library of receivers."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta, timezone

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from bloxserver.clients.signatures import identify, sign

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


def spelled(key: bytes) -> str:
    return "whsec_" + base64.b64encode(key).decode()


@pytest.mark.parametrize("body", [b"{}", '{"é":"日"}'.encode(), b""], ids=ascii)
def test_receiver_accepts_only_the_signed_message(body: bytes) -> None:
    headers = sign(SECRET, "msg_1", datetime.now(UTC), body)
    assert set(headers) == {"webhook-id", "webhook-timestamp", "webhook-signature"}
    receiver = Webhook(SECRET)
    receiver.verify(body, headers, json_parse=False)
    for change in ({"webhook-id": "msg_2"}, {"webhook-timestamp": str(int(headers["webhook-timestamp"]) - 1)}):
        with pytest.raises(WebhookVerificationError):
            receiver.verify(body, headers | change, json_parse=False)
    with pytest.raises(WebhookVerificationError):
        receiver.verify(body + b" ", headers, json_parse=False)


def test_signature_matches_the_specification() -> None:
    # The example of the Standard Webhooks specification.
    headers = sign(
        "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
        "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
        datetime.fromtimestamp(1649367553, UTC),
        b'{"email":"test@example.com","username":"test_user"}',
    )
    assert headers == {
        "webhook-id": "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
        "webhook-timestamp": "1649367553",
        "webhook-signature": "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
    }


def test_timestamp_is_independent_of_the_time_zone() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 999_999, tzinfo=UTC)
    elsewhere = moment.astimezone(timezone(timedelta(hours=-7)))
    assert sign(SECRET, "m", elsewhere, b"x") == sign(SECRET, "m", moment, b"x")
    assert identify("m", elsewhere) == {"webhook-id": "m", "webhook-timestamp": "1767323045"}


@pytest.mark.parametrize("secret", [spelled(bytes(24)), spelled(bytes(64)), spelled(bytes(25)).rstrip("=")], ids=len)
def test_secret_of_24_to_64_bytes_is_accepted(secret: str) -> None:
    assert sign(secret, "m", datetime.now(UTC), b"x")["webhook-signature"].startswith("v1,")


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        "whsec_A",
        "secret",
        SECRET.removeprefix("whsec_"),
        "WHSEC_" + SECRET.removeprefix("whsec_"),
        " " + SECRET,
        SECRET + "\n",
        SECRET.replace("A", "é"),
        SECRET.replace("A", "-"),
        spelled(bytes(23)),
        spelled(bytes(65)),
        "whsec_" + "\ud800" * 40,
    ],
    ids=ascii,
)
def test_invalid_secret_is_rejected_without_its_value(secret: str) -> None:
    with pytest.raises(ValueError, match="secret") as caught:
        sign(secret, "m", datetime.now(UTC), b"x")
    assert str(caught.value) == "the secret must be whsec_ and the base64 of 24 to 64 bytes"
