"""The `Host` and `Origin` of requests: DNS rebinding, cross-site requests, and `TRUSTED_HOSTS`."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from structlog.testing import capture_logs

from bloxserver.api import hosts
from bloxserver.api.dependencies import CurrentUser, get_current_user
from bloxserver.api.main import app
from bloxserver.errors import SettingsError
from bloxserver.models.tables import FlowRecord, UserRecord
from bloxserver.settings import Settings
from tests.api.contract import API, assert_problem, covers
from tests.clerk import clerk_authentication, override_settings
from tests.server import connection, run_server, status_of

FLOWS = f"{API}/flows"
NEW = {"name": "A"}
UNTRUSTED = (400, "untrusted_host", "The Host header is not in TRUSTED_HOSTS")
CROSS_SITE = (403, "cross_site_request", "The request comes from a web site that is not in CORS_ORIGINS")


async def flow_count(session: AsyncSession) -> int:
    return await session.scalar(sa.select(sa.func.count()).select_from(FlowRecord)) or 0


class TestHostWithoutSignIn:
    """In development without an issuer, every request is the development user's."""

    async def test_local_name_or_address_is_accepted(self, client: httpx.AsyncClient) -> None:
        for host in (
            *("localhost", "localhost:8000", "LOCALHOST", "test", "api:8000", "127.0.0.1", "127.0.0.1:8000"),
            *("192.168.1.7:8000", "[::1]", "[::1]:8000", "[fe80::1]:80", ""),
        ):
            assert (await client.get(FLOWS, headers={"Host": host})).status_code == 200, host

    @covers("hosts.development")
    async def test_dotted_name_is_rejected(self, client: httpx.AsyncClient, session: AsyncSession) -> None:
        for host in ("evil.example", "evil.example:8000", "a.localhost.evil.example", "localhost."):
            for method in ("GET", "POST"):
                assert_problem(await client.request(method, FLOWS, json=NEW, headers={"Host": host}), *UNTRUSTED)
        assert await flow_count(session) == 0

    async def test_name_in_trusted_hosts_is_accepted(self, client: httpx.AsyncClient) -> None:
        with override_settings(TRUSTED_HOSTS="blox.internal.example, *.Preview.example"):
            for host in ("blox.internal.example", "BLOX.internal.example:8000", "a.preview.example", "localhost"):
                assert (await client.get(FLOWS, headers={"Host": host})).status_code == 200
            for host in ("evil.example", "preview.example", ".preview.example", "notblox.internal.example"):
                assert_problem(await client.get(FLOWS, headers={"Host": host}), *UNTRUSTED)

    async def test_each_of_several_hosts_is_checked(self, client: httpx.AsyncClient) -> None:
        headers = [("Host", "localhost"), ("Host", "evil.example")]
        assert_problem(await client.get(FLOWS, headers=headers), *UNTRUSTED)

    async def test_public_routes_accept_every_host(self, client: httpx.AsyncClient) -> None:
        for path in ("/", "/health", "/health/ready", "/webhooks/none/test", "/openapi.json"):
            answers = [await client.get(path, headers={"Host": host}) for host in ("localhost", "evil.example")]
            assert answers[0].status_code == answers[1].status_code != 400

    async def test_overridden_sign_in_is_not_checked(self, client: httpx.AsyncClient) -> None:
        user = CurrentUser(UserRecord(clerk_id="ada"), {})
        app.dependency_overrides[get_current_user] = lambda: user
        answer = await client.get(f"{API}/me", headers={"Host": "flows.example.com"})
        assert answer.status_code != 400


class TestOriginWithoutSignIn:
    async def test_request_of_an_allowed_or_of_the_own_origin_is_accepted(self, client: httpx.AsyncClient) -> None:
        allowed: list[dict[str, str]] = [
            {},
            {"Origin": "http://localhost:3000"},
            {"Origin": "https://app.openblox.ai"},
            {"Origin": "http://test"},
            {"Origin": "https://test"},
            {"Host": "[::1]:8000", "Origin": "http://[::1]:8000"},
            {"Host": "LOCALHOST:8000", "Origin": "http://localhost:8000"},
            {"Sec-Fetch-Site": "same-origin"},
            {"Sec-Fetch-Site": "none"},
        ]
        for headers in allowed:
            assert (await client.post(FLOWS, json=NEW, headers=headers)).status_code == 201, headers

    @covers("hosts.cross-site")
    async def test_request_of_another_site_changes_nothing(
        self, client: httpx.AsyncClient, session: AsyncSession
    ) -> None:
        foreign: list[dict[str, str]] = [
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": ""},
            {"Origin": "http://localhost:3001"},
            {"Origin": "http://test:8000"},
            {"Origin": "http://test.evil.example"},
            {"Host": "", "Origin": "null"},
            {"Host": "", "Origin": "http://"},
            {"Sec-Fetch-Site": "cross-site"},
        ]
        flow = f"{FLOWS}/00000000-0000-0000-0000-000000000000"
        for headers in foreign:
            assert_problem(await client.post(FLOWS, json=NEW, headers=headers), *CROSS_SITE)
            assert_problem(await client.post(FLOWS, content=b"{", headers=headers), *CROSS_SITE)
            for method, path in (("PUT", f"{API}/secrets/TOKEN"), ("PATCH", flow), ("DELETE", flow)):
                assert_problem(await client.request(method, path, json={}, headers=headers), *CROSS_SITE)
        assert await flow_count(session) == 0

    async def test_reading_across_sites_is_left_to_cors(self, client: httpx.AsyncClient) -> None:
        answer = await client.get(FLOWS, headers={"Origin": "https://evil.example"})
        assert answer.status_code == 200
        assert "Access-Control-Allow-Origin" not in answer.headers

    async def test_origin_of_cors_origins_is_accepted(self, client: httpx.AsyncClient) -> None:
        for allowed, origin in (("https://front.example", "https://front.example"), ("null", "null"), ("*", "null")):
            with override_settings(CORS_ORIGINS=allowed):
                answer = await client.post(FLOWS, json=NEW, headers={"Origin": origin})
            assert answer.status_code == 201

    async def test_webhook_accepts_every_origin(self, client: httpx.AsyncClient) -> None:
        answer = await client.post("/webhooks/unknown", headers={"Origin": "https://evil.example"})
        assert_problem(answer, 404, "webhook_not_found", "Webhook not found")


class TestWithSignIn:
    async def test_tokens_are_accepted_from_every_host_and_origin(self, client: httpx.AsyncClient) -> None:
        async with clerk_authentication() as clerk:
            headers = clerk.headers("ada") | {"Host": "flows.example.com", "Origin": "https://evil.example"}
            assert (await client.post(FLOWS, json=NEW, headers=headers)).status_code == 201

    @covers("hosts.trusted")
    async def test_other_hosts_than_the_trusted_ones_are_rejected(self, client: httpx.AsyncClient) -> None:
        with override_settings(ENV="production", TRUSTED_HOSTS="flows.example.com,*.nodes.example.com"):
            for path in ("/", FLOWS, "/webhooks/none/test", "/nothing"):
                for host in ("evil.example", "localhost", "127.0.0.1", "", "nodes.example.com"):
                    assert_problem(await client.get(path, headers={"Host": host}), *UNTRUSTED)
                for host in ("flows.example.com", "FLOWS.example.com:443", "b.nodes.example.com"):
                    assert (await client.get(path, headers={"Host": host})).status_code != 400
                both = [("Host", "flows.example.com"), ("Host", "evil.example")]
                assert_problem(await client.get(path, headers=both), *UNTRUSTED)

    async def test_probes_and_metrics_accept_every_host(self, client: httpx.AsyncClient) -> None:
        with override_settings(ENV="production", TRUSTED_HOSTS="flows.example.com"):
            for path in ("/health", "/health/live", "/metrics"):
                assert (await client.get(path, headers={"Host": "10.1.2.3:8000"})).status_code in (200, 404)

    async def test_every_host_is_accepted_if_none_is_configured(self, client: httpx.AsyncClient) -> None:
        with override_settings(ENV="production"):
            assert (await client.get("/", headers={"Host": "evil.example"})).status_code == 200


class TestSetting:
    @pytest.mark.parametrize(
        "pattern", ["https://flows.example.com", "flows.example.com:443", "*", "*example.com", "a.*.com", "a b"]
    )
    def test_pattern_that_is_not_a_host_prevents_a_start(self, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
        monkeypatch.setenv("TRUSTED_HOSTS", f"flows.example.com,{pattern}")
        with pytest.raises(SettingsError, match=r"TRUSTED_HOSTS: '.*' is not a host"):
            Settings.load().check_startup()


class TestWarning:
    @pytest.fixture(autouse=True)
    def first_request(self) -> Iterator[None]:
        hosts._warn_of_remote_client.cache_clear()
        yield
        hosts._warn_of_remote_client.cache_clear()

    @pytest.mark.parametrize(
        ("address", "count"),
        [("127.0.0.1", 0), ("::1", 0), ("::ffff:127.0.0.1", 0), ("192.168.1.9", 1), ("fd00::9", 1)],
    )
    async def test_first_request_of_another_machine_logs_a_warning(
        self, client: httpx.AsyncClient, address: str, count: int
    ) -> None:
        transport = httpx.ASGITransport(app=app, client=(address, 5000))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as remote:
            with capture_logs() as logs:
                for _ in range(2):
                    await remote.get(FLOWS)
        events = [line["event"] for line in logs if line["log_level"] == "warning"]
        assert ["a request from another machine" in event for event in events] == [True] * count


async def test_http_1_0_request_without_a_host_is_accepted(client: httpx.AsyncClient) -> None:
    async with run_server() as port, connection(port) as (reader, writer):
        writer.write(f"GET {FLOWS} HTTP/1.0\r\n\r\n".encode())
        assert await status_of(reader) == 200
