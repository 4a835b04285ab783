from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from jwt.algorithms import RSAAlgorithm

from bloxserver.clients.jwks import SigningKeys
from bloxserver.errors import Unavailable
from tests.jwks_server import JWKS_PATH, JwksServer, Mode, SigningKey

FIRST = SigningKey("ins_first")
SECOND = SigningKey("ins_second")
MINUTE, HOUR = 60, 3600
FOUND, MISSING, UNAVAILABLE = "found", "missing", "unavailable"


@dataclass
class Provider:
    """Keys and their server, with a clock that only the test advances."""

    server: JwksServer
    elapsed: float = 0

    def __post_init__(self) -> None:
        self.keys = self.keys_of(self.server.issuer)

    def keys_of(self, issuer: str, fetch_seconds: float = 5) -> SigningKeys:
        return SigningKeys(issuer + JWKS_PATH, clock=lambda: self.elapsed, fetch_seconds=fetch_seconds)

    async def look_up(self, key_id: str = FIRST.kid, keys: SigningKeys | None = None) -> str:
        try:
            return FOUND if await (keys or self.keys).find(key_id) else MISSING
        except Unavailable:
            return UNAVAILABLE

    async def look_up_often(self, key_id: str = FIRST.kid) -> set[str]:
        return set(await asyncio.gather(*[self.look_up(key_id) for _ in range(50)]))

    def hang(self) -> None:
        """Make the next fetch wait for `server.release`."""
        self.server.requested.clear()
        self.server.mode = Mode.HANG

    async def finish_fetch(self) -> None:
        """Wait for the background fetch by looking up an unknown key."""
        await self.look_up("unknown")


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with JwksServer(FIRST) as server:
        provider = Provider(server)
        yield provider
        await provider.keys.aclose()


class TestUnavailableProvider:
    @pytest.mark.parametrize("mode", [mode for mode in Mode if mode is not Mode.OK])
    async def test_unavailable_provider_recovers(self, provider: Provider, mode: Mode) -> None:
        provider.server.mode = mode
        keys = provider.keys_of(provider.server.issuer, fetch_seconds=0.2 if mode is Mode.HANG else 5)
        assert await provider.look_up(keys=keys) == UNAVAILABLE
        provider.server.mode = Mode.OK
        provider.elapsed = 4.9
        assert await provider.look_up(keys=keys) == UNAVAILABLE
        assert provider.server.fetches == 1
        provider.elapsed = 5
        assert await provider.look_up(keys=keys) == FOUND
        assert provider.server.fetches == 2

    @pytest.mark.parametrize(
        "issuer", ["", "text", "ftp://x", "http://[", "http://a b", "http://127.0.0.1:99999", "http://\0"]
    )
    async def test_invalid_issuer_url_is_unavailable(self, provider: Provider, issuer: str) -> None:
        assert await provider.look_up(keys=provider.keys_of(issuer)) == UNAVAILABLE

    async def test_refused_connection_is_unavailable(self, provider: Provider) -> None:
        async with JwksServer(FIRST) as gone:
            keys = provider.keys_of(gone.issuer)
        assert await provider.look_up(keys=keys) == UNAVAILABLE

    async def test_proxy_variables_are_ignored(self, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        assert await provider.look_up() == FOUND


class TestUsableKeys:
    @pytest.mark.parametrize(
        "jwk",
        [
            {"kty": "oct", "k": "c2VjcmV0", "kid": FIRST.kid},
            FIRST.jwk(kty="oct"),
            FIRST.jwk(use="enc"),
            FIRST.jwk(alg="RS512"),
            FIRST.jwk(kid=7),
            FIRST.jwk(d="AQAB"),
            FIRST.jwk() | RSAAlgorithm.to_jwk(FIRST.private, as_dict=True),
            FIRST.jwk(n=7),
            FIRST.jwk(n="é"),
            FIRST.jwk(e=""),
            FIRST.jwk(e=None),
            SigningKey(FIRST.kid, pair="small", bits=1024).jwk(),
            "text",
            None,
        ],
    )
    async def test_unusable_keys_are_skipped(self, provider: Provider, jwk: object) -> None:
        provider.server.keys = [jwk]
        assert await provider.look_up() == UNAVAILABLE
        provider.server.keys = [jwk, SECOND.jwk()]
        provider.elapsed = 5
        assert await provider.look_up(SECOND.kid) == FOUND
        assert await provider.look_up() == MISSING

    async def test_use_and_algorithm_are_optional(self, provider: Provider) -> None:
        provider.server.keys = [{name: value for name, value in FIRST.jwk().items() if name not in ("use", "alg")}]
        assert await provider.look_up() == FOUND


class TestFetches:
    @pytest.mark.parametrize(("mode", "outcome"), [(Mode.OK, FOUND), (Mode.ERROR, UNAVAILABLE)])
    async def test_concurrent_requests_share_a_fetch(self, provider: Provider, mode: Mode, outcome: str) -> None:
        provider.server.mode = mode
        assert await provider.look_up_often() == {outcome}
        assert provider.server.fetches == 1

    async def test_cancelled_request_does_not_cancel_the_fetch(self, provider: Provider) -> None:
        provider.hang()
        first = asyncio.create_task(provider.look_up())
        await provider.server.requested.wait()
        second = asyncio.create_task(provider.look_up())
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        provider.server.release.set()
        assert await second == FOUND
        assert first.cancelled()
        assert provider.server.fetches == 1

    async def test_unknown_key_ids_cause_at_most_one_fetch_in_30_seconds(self, provider: Provider) -> None:
        assert await provider.look_up_often("unknown") == {MISSING}
        provider.elapsed = 29.9
        assert await provider.look_up_often("unknown") == {MISSING}
        assert provider.server.fetches == 1
        provider.elapsed = 30
        assert await provider.look_up_often("unknown") == {MISSING}
        assert provider.server.fetches == 2

    async def test_known_key_does_not_wait_for_a_fetch(self, provider: Provider) -> None:
        assert await provider.look_up() == FOUND
        provider.elapsed = 30
        provider.hang()
        unknown = asyncio.create_task(provider.look_up("unknown"))
        await provider.server.requested.wait()
        assert await provider.look_up() == FOUND
        assert not unknown.done()
        provider.server.release.set()
        assert await unknown == MISSING

    async def test_fetch_replaces_all_keys(self, provider: Provider) -> None:
        assert await provider.look_up() == FOUND
        provider.server.keys = [SECOND.jwk()]
        provider.elapsed = 30
        assert await provider.look_up(SECOND.kid) == FOUND
        assert await provider.look_up() == MISSING
        assert provider.server.fetches == 2

    async def test_old_keys_are_used_during_a_background_fetch(self, provider: Provider) -> None:
        assert await provider.look_up() == FOUND
        provider.server.keys = [SECOND.jwk()]
        provider.elapsed = 10 * MINUTE
        assert await provider.look_up() == FOUND
        assert provider.server.fetches == 1

        provider.hang()
        provider.elapsed += 1
        assert await provider.look_up_often() == {FOUND}
        await provider.server.requested.wait()
        assert await provider.look_up() == FOUND
        provider.server.release.set()
        await provider.finish_fetch()
        assert await provider.look_up() == MISSING
        assert await provider.look_up(SECOND.kid) == FOUND
        assert provider.server.fetches == 2

    async def test_keys_are_used_for_a_day_during_an_outage(self, provider: Provider) -> None:
        assert await provider.look_up() == FOUND
        provider.server.mode = Mode.ERROR
        provider.elapsed = HOUR
        assert await provider.look_up_often() == {FOUND}
        await provider.finish_fetch()
        provider.elapsed += 4.9
        assert await provider.look_up() == FOUND
        # During the outage it is unknown whether the provider publishes this key.
        assert await provider.look_up("unknown") == UNAVAILABLE
        assert provider.server.fetches == 2

        provider.elapsed = 24 * HOUR
        assert await provider.look_up() == FOUND
        await provider.finish_fetch()
        provider.elapsed += 1
        assert await provider.look_up() == UNAVAILABLE
        assert provider.server.fetches == 3

        provider.server.mode = Mode.OK
        provider.elapsed += 4
        assert await provider.look_up() == FOUND
        assert provider.server.fetches == 4

    async def test_aclose_cancels_a_running_fetch(self, provider: Provider) -> None:
        assert await provider.look_up() == FOUND
        provider.elapsed = HOUR
        provider.hang()
        assert await provider.look_up() == FOUND
        await provider.server.requested.wait()
        await provider.keys.aclose()
        provider.server.mode = Mode.OK
        assert await provider.look_up(SECOND.kid) == MISSING
        assert provider.server.fetches == 3
