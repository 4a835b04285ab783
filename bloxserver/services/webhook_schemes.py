"""How senders of webhooks prove who they are: the `signature` of a webhook's config, and its verification.

All schemes are verified over the raw bytes of the body. Comparisons take the same time for all wrong values.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import re
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from hashlib import sha256
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from bloxserver.encryption import SECRET_NAME
from bloxserver.errors import Unprocessable
from bloxserver.signing_key_format import read_secret

DEFAULT_TOLERANCE = 300
"""Seconds, as Standard Webhooks, Stripe and Slack recommend."""
MAX_PARSED_BYTES = 64 * 1024
"""The largest body in which the id of a delivery is searched, on the event loop."""
MAX_ID_LENGTH = 255
MAX_ERRORS = 100
"""Reasons in the response to an invalid signature."""
KEY_TEXT = r"[^\x00-\x1f\x7f]{8,512}"
HEADER_NAME = "^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}$"


class SignatureInvalid(Exception):
    """The sender of a webhook is not proven. The message is for the webhook's owner, not for the sender."""


Headers = Mapping[str, str]
"""Values by names in lower case, decoded as Latin-1."""


class _Scheme(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    secret: Annotated[str, Field(pattern=f"^{SECRET_NAME}$")] | None = None
    """The name of a secret of the user that is valid in addition to the signing secrets of the webhook."""

    def check_secret(self, secret: str) -> None:
        """Raise `ValueError` if the scheme cannot use the secret. The message does not contain it."""
        if not re.fullmatch(KEY_TEXT, secret):
            raise ValueError("must have 8 to 512 characters and no control characters")

    def verify(self, secrets: Collection[str], body: bytes, headers: Headers, moment: datetime) -> None:
        """Raise `SignatureInvalid` unless one of the secrets proves the sender of the request."""
        raise NotImplementedError

    def delivery_id(self, body: bytes, headers: Headers) -> str | None:
        """The sender's own id of the delivery, which is the same if the sender repeats it."""
        return None


class _SentSecret(_Scheme):
    """A scheme whose sender sends the secret itself in a header."""

    def check_secret(self, secret: str) -> None:
        super().check_secret(secret)
        if secret != secret.strip():
            raise ValueError("must not begin or end with a space, which HTTP removes from headers")


class Unsigned(_Scheme):
    """A webhook without a scheme."""


class _Timestamped(_Scheme):
    tolerance_seconds: Annotated[int, Field(ge=1, le=86_400)] = DEFAULT_TOLERANCE
    deduplicate: bool = False

    def _check_timestamp(self, text: str, moment: datetime) -> None:
        if not re.fullmatch("[0-9]{1,12}", text):
            raise SignatureInvalid("The timestamp is missing or malformed")
        if abs(moment.timestamp() - int(text)) > self.tolerance_seconds:
            raise SignatureInvalid(f"The timestamp differs by more than {self.tolerance_seconds} seconds from now")


class StandardWebhooks(_Timestamped):
    """https://www.standardwebhooks.com, also with the header names of Svix."""

    scheme: Literal["standard-webhooks"]

    def check_secret(self, secret: str) -> None:
        read_secret(secret)

    def verify(self, secrets: Collection[str], body: bytes, headers: Headers, moment: datetime) -> None:
        message_id, timestamp = _standard_header(headers, "id"), _standard_header(headers, "timestamp")
        self._check_timestamp(timestamp, moment)
        signatures = [part.partition(",") for part in _standard_header(headers, "signature").split()]
        sent = [_decoded_base64(signature) for version, _, signature in signatures if version == "v1"]
        content = f"{message_id}.{timestamp}.".encode("latin-1") + body
        _require_any(sent, (hmac.digest(read_secret(secret), content, "sha256") for secret in secrets))

    def delivery_id(self, body: bytes, headers: Headers) -> str | None:
        return _standard_header(headers, "id") if self.deduplicate else None


class GitHub(_Scheme):
    """https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries"""

    scheme: Literal["github"]
    deduplicate: bool = False

    def verify(self, secrets: Collection[str], body: bytes, headers: Headers, moment: datetime) -> None:
        sent = headers.get("x-hub-signature-256", "").removeprefix("sha256=")
        _require_any([_decoded_hex(sent)], (hmac.digest(secret.encode(), body, "sha256") for secret in secrets))

    def delivery_id(self, body: bytes, headers: Headers) -> str | None:
        return headers.get("x-github-delivery") if self.deduplicate else None


class StripeScheme(_Timestamped):
    """https://docs.stripe.com/webhooks#verify-manually"""

    scheme: Literal["stripe"]

    def verify(self, secrets: Collection[str], body: bytes, headers: Headers, moment: datetime) -> None:
        members = [part.strip().partition("=") for part in headers.get("stripe-signature", "").split(",")]
        timestamp = next((value for name, _, value in members if name == "t"), "")
        self._check_timestamp(timestamp, moment)
        sent = [_decoded_hex(value) for name, _, value in members if name == "v1"]
        content = f"{timestamp}.".encode() + body
        _require_any(sent, (hmac.digest(secret.encode(), content, "sha256") for secret in secrets))

    def delivery_id(self, body: bytes, headers: Headers) -> str | None:
        return _json_member(body, "id") if self.deduplicate else None


class Slack(_Timestamped):
    """https://docs.slack.dev/authentication/verifying-requests-from-slack"""

    scheme: Literal["slack"]

    def verify(self, secrets: Collection[str], body: bytes, headers: Headers, moment: datetime) -> None:
        timestamp = headers.get("x-slack-request-timestamp", "")
        self._check_timestamp(timestamp, moment)
        sent = headers.get("x-slack-signature", "").removeprefix("v0=")
        content = f"v0:{timestamp}:".encode() + body
        _require_any([_decoded_hex(sent)], (hmac.digest(secret.encode(), content, "sha256") for secret in secrets))

    def delivery_id(self, body: bytes, headers: Headers) -> str | None:
        return _json_member(body, "event_id") if self.deduplicate else None


class GitLab(_SentSecret):
    """The secret token of https://docs.gitlab.com/user/project/integrations/webhooks/.

    Deliveries have an `Idempotency-Key`, so they need no `deduplicate`.
    """

    scheme: Literal["gitlab"]

    def verify(self, secrets: Collection[str], body: bytes, headers: Headers, moment: datetime) -> None:
        _require_any([_bytes(headers.get("x-gitlab-token", ""))], (secret.encode() for secret in secrets))


class Hmac(_Scheme):
    """An HMAC of the body in a header."""

    scheme: Literal["hmac"]
    header: Annotated[str, Field(pattern=HEADER_NAME)]
    algorithm: Literal["sha1", "sha256", "sha384", "sha512"] = "sha256"
    encoding: Literal["hex", "base64"] = "hex"
    prefix: Annotated[str, Field(max_length=50)] = ""
    """The text before the signature in the header."""

    def verify(self, secrets: Collection[str], body: bytes, headers: Headers, moment: datetime) -> None:
        sent = headers.get(self.header.lower(), "").strip()
        if not sent.startswith(self.prefix):
            raise SignatureInvalid(f"The header does not start with {self.prefix!r}")
        text = sent[len(self.prefix) :]
        signature = _decoded_hex(text) if self.encoding == "hex" else _decoded_base64(text)
        _require_any([signature], (hmac.digest(secret.encode(), body, self.algorithm) for secret in secrets))


class Basic(_Scheme):
    """HTTP Basic authentication (RFC 7617). The signing secret is the password."""

    scheme: Literal["basic"]
    username: Annotated[str, Field(min_length=1, max_length=100, pattern="^[^:]*$")]

    def verify(self, secrets: Collection[str], body: bytes, headers: Headers, moment: datetime) -> None:
        sent = _decoded_base64(_credentials(headers, "basic"))
        _require_any([sent], (f"{self.username}:{secret}".encode() for secret in secrets))


class Bearer(_SentSecret):
    """A bearer token (RFC 6750). The signing secret is the token."""

    scheme: Literal["bearer"]

    def verify(self, secrets: Collection[str], body: bytes, headers: Headers, moment: datetime) -> None:
        _require_any([_bytes(_credentials(headers, "bearer"))], (secret.encode() for secret in secrets))


Signature = StandardWebhooks | GitHub | StripeScheme | Slack | GitLab | Hmac | Basic | Bearer
SIGNATURE_SCHEMAS: list[dict[str, Any]] = [scheme.model_json_schema() for scheme in get_args(Signature)]
"""The JSON Schemas of all schemes."""
_ADAPTER: TypeAdapter[Signature] = TypeAdapter(Annotated[Signature, Field(discriminator="scheme")])


def signature_of(config: Mapping[str, Any]) -> Signature | None:
    """The `signature` of a webhook's config; None if every sender is accepted. Raises `pydantic.ValidationError`."""
    found = config.get("signature")
    return None if found is None else _ADAPTER.validate_python(found)


def check_signature(config: Mapping[str, Any]) -> Signature | None:
    """As `signature_of`. Raises `Unprocessable`."""
    try:
        return signature_of(config)
    except ValidationError as invalid:
        reasons: dict[str, str] = {}
        for error in invalid.errors(include_url=False, include_input=False, include_context=False)[:MAX_ERRORS]:
            # The first place is the scheme, by which the model was chosen.
            place = [str(part) for part in error["loc"][1:]]
            reasons.setdefault(".".join(["body.config.signature", *place]), error["msg"])
        raise Unprocessable(reasons) from None


def _require_any(sent: Collection[bytes | None], expected: Iterator[bytes]) -> None:
    """Raise `SignatureInvalid` unless a value that was sent is an expected one."""
    found = [value for value in sent if value]
    if not found:
        raise SignatureInvalid("The signature is missing or malformed")
    # Values of different lengths are compared by their hashes, because the length of a password is a secret too.
    hashes = [sha256(value).digest() for value in expected]
    if not hashes:
        raise SignatureInvalid("The webhook has no signing secret")
    if not any(hmac.compare_digest(sha256(value).digest(), one) for value in found for one in hashes):
        raise SignatureInvalid("The signature does not match")


def _standard_header(headers: Headers, name: str) -> str:
    return headers.get(f"webhook-{name}") or headers.get(f"svix-{name}") or ""


def _credentials(headers: Headers, scheme: str) -> str:
    found, _, credentials = headers.get("authorization", "").partition(" ")
    return credentials.strip() if found.lower() == scheme else ""


def _decoded_hex(text: str) -> bytes | None:
    try:
        return bytes.fromhex(text) if re.fullmatch("[0-9a-fA-F]+", text) else None
    except ValueError:  # an odd number of digits
        return None


def _decoded_base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text.encode("latin-1"), validate=True)
    except (binascii.Error, ValueError):
        return None


def _bytes(header: str) -> bytes:
    return header.encode("latin-1", errors="replace")


def _json_member(body: bytes, name: str) -> str | None:
    """A text in the object that the body is; None if there is none, or if the body is large."""
    if len(body) > MAX_PARSED_BYTES:
        return None
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    member = found.get(name) if isinstance(found, dict) else None
    return member if isinstance(member, str) and 0 < len(member) <= MAX_ID_LENGTH else None
