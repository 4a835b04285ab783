"""Simulates Clerk: keys that sign tokens, and a server on loopback that publishes them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from enum import StrEnum
from functools import lru_cache
from typing import Any, Literal, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from jwt.utils import base64url_encode

JWKS_PATH = "/.well-known/jwks.json"
CONFIGURATION_PATH = "/.well-known/openid-configuration"


@lru_cache
def _private_key(name: str, bits: int) -> rsa.RSAPrivateKey:
    """Create a key. Cached by name and size."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@lru_cache
def _elliptic_key(name: str) -> ec.EllipticCurvePrivateKey:
    """Create a key. Cached by name."""
    return ec.generate_private_key(ec.SECP256R1())


class EllipticKey:
    """A key for ES256 with an id."""

    def __init__(self, kid: str = "elliptic") -> None:
        self.kid = kid
        self.private = _elliptic_key(kid)

    def jwk(self, **overrides: object) -> dict[str, object]:
        public = ECAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        return public | {"use": "sig", "kid": self.kid} | overrides

    def sign(self, payload: dict[str, object]) -> str:
        return jwt.encode(payload, self.private, "ES256", headers={"kid": self.kid})


class SigningKey:
    """An RSA key with an id. Keys of one `pair` (by default the id) are the same key."""

    def __init__(self, kid: str = "ins_first", *, pair: str | None = None, bits: int = 2048) -> None:
        self.kid = kid
        self.private = _private_key(pair or kid, bits)

    def jwk(self, **overrides: object) -> dict[str, object]:
        """Return the public key in the format of Clerk."""
        public = RSAAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        members: dict[str, object] = {name: public[name] for name in ("kty", "n", "e")}
        return members | {"use": "sig", "alg": "RS256", "kid": self.kid} | overrides

    def sign(self, payload: object, **header: object) -> str:
        """Sign any payload. `header` replaces members of the header; a member that is None is omitted.

        The algorithm is always `alg`. The secret of an HS algorithm is the public key in PEM format.
        """
        members = {"alg": "RS256", "typ": "JWT", "kid": self.kid} | header
        members = {name: value for name, value in members.items() if value is not None}
        parts = [json.dumps(part).encode() for part in (members, payload)]
        signing_input = b".".join(base64url_encode(part) for part in parts)
        algorithm = str(members.get("alg", "RS256"))
        key: Any = self.private
        if algorithm.startswith("HS"):
            key = self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        signature = jwt.get_algorithm_by_name(algorithm).sign(signing_input, key)
        return b".".join((signing_input, base64url_encode(signature))).decode()


def claims(issuer: str, *, now: float | None = None, **overrides: object) -> dict[str, object]:
    """Claims of a session token of Clerk, issued at `now` and valid for a minute. A claim that is None is omitted."""
    issued = int(time.time() if now is None else now)
    members: dict[str, object] = {
        "iss": issuer,
        "sub": "user_2NNEqL2nrIRdJ194ndJqAHwEfxC",
        "sid": "sess_2NNEqL2nrIRdJ194ndJqAHwEfxC",
        "iat": issued,
        "nbf": issued,
        "exp": issued + 60,
        "v": 2,
        "sts": "active",
        "email": "ada@example.com",
        "name": "Ada Lovelace",
        "image_url": "https://img.clerk.com/ada.png",
    }
    return {name: value for name, value in (members | overrides).items() if value is not None}


class Mode(StrEnum):
    """The responses of the server. All but `HTML` and `EMPTY` contain the keys, so that only a rule can reject them."""

    OK = "ok"
    ERROR = "error"
    REDIRECT = "redirect"
    HTML = "html"
    EMPTY = "empty"
    LIST = "list"
    LARGE = "large"
    HANG = "hang"


class JwksServer:
    """Serves `keys` at `{issuer}/.well-known/jwks.json` and counts the requests in `fetches`.

    It also serves the configuration of an OpenID Connect provider, which names these keys.

    In the mode `HANG` it answers when `release` is set, and sets `requested` before.
    """

    def __init__(self, *keys: SigningKey | EllipticKey) -> None:
        self.keys: list[object] = [key.jwk() for key in keys]
        self.configuration: dict[str, object] = {}
        """Replaces members of the configuration of an OpenID Connect provider."""
        self.mode = Mode.OK
        self.fetches = 0
        self.requested = asyncio.Event()
        self.release = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.issuer = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> Literal[False]:
        self.release.set()
        self._server.close()
        await self._server.wait_closed()
        return False

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A client that stops waiting closes its connection.
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            request = await reader.readuntil(b"\r\n\r\n")
            self.fetches += 1
            self.requested.set()
            if self.mode is Mode.HANG:
                await self.release.wait()
            writer.write(self._response(request.split()[1].decode()))
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    def _response(self, path: str) -> bytes:
        key_set = json.dumps({"keys": self.keys})
        statuses = {Mode.ERROR: "500 Internal Server Error", Mode.REDIRECT: "302 Found"}
        bodies = {
            Mode.HTML: "<html>Just a moment</html>",
            Mode.EMPTY: json.dumps({"keys": []}),
            Mode.LIST: json.dumps(self.keys),
            Mode.LARGE: key_set + " " * 1024 * 1024,
        }
        mode = self.mode if path == JWKS_PATH else Mode.OK
        body = bodies.get(mode, key_set)
        if path.endswith(CONFIGURATION_PATH):
            standard = {"issuer": self.issuer, "jwks_uri": f"{self.issuer}{JWKS_PATH}"}
            body = json.dumps(standard | self.configuration)
        lines = [
            f"HTTP/1.1 {statuses.get(mode, '200 OK')}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
        ]
        if mode is Mode.REDIRECT:
            lines.append(f"Location: {self.issuer}/elsewhere.json")
        return "\r\n".join([*lines, "", body]).encode()
