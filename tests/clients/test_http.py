"""The guarded client: refused addresses, redirects and requests."""

from __future__ import annotations

import asyncio
from asyncio import StreamWriter
from ipaddress import ip_address

import pytest

from bloxserver.clients.http import GuardedClient
from tests.clients.hostile import HOSTILE_LOCATIONS, HOSTILE_URLS, NAMES, PUBLIC, PUBLIC_IPV6
from tests.clients.loopback import LoopbackServer, answer, refusal
from tests.clients.network import Network


@pytest.fixture
async def strict() -> GuardedClient:
    """A client that allows no private network."""
    return GuardedClient()


class TestGuard:
    def test_matrix_of_hostile_urls_is_complete(self) -> None:
        assert len(HOSTILE_URLS) + len(HOSTILE_LOCATIONS) >= 52

    @pytest.mark.parametrize(("url", "code"), HOSTILE_URLS, ids=lambda value: ascii(value)[:50])
    async def test_hostile_url_is_not_connected_to(
        self, strict: GuardedClient, network: Network, url: str, code: str
    ) -> None:
        assert await refusal(strict, url, follow_redirects=True) == code
        assert network.dialled == []

    @pytest.mark.parametrize(("location", "code"), HOSTILE_LOCATIONS.items())
    async def test_redirect_to_a_private_address_is_refused(
        self, client: GuardedClient, server: LoopbackServer, network: Network, location: str, code: str
    ) -> None:
        server.answers["/"] = answer(status="302 Found", headers={"Location": location})
        assert await refusal(client, server.url("/"), follow_redirects=True) == code
        assert network.dialled == ["127.0.0.1"]

    @pytest.mark.parametrize(
        ("host", "dialled"), [("public.test", [PUBLIC]), ("public6.test", [PUBLIC_IPV6, PUBLIC]), (PUBLIC, [PUBLIC])]
    )
    async def test_public_addresses_are_tried_in_order(
        self, strict: GuardedClient, network: Network, host: str, dialled: list[str]
    ) -> None:
        assert await refusal(strict, f"http://{host}:8080/?key=secret") == "connection_failed"
        assert network.dialled == dialled

    async def test_name_is_resolved_once_and_the_checked_address_is_used(
        self, strict: GuardedClient, network: Network
    ) -> None:
        assert await refusal(strict, "http://rebound.test/") == "connection_failed"
        assert (network.questions, network.dialled) == (["rebound.test"], [PUBLIC])
        assert await refusal(strict, "http://rebound.test/") == "address_refused"
        assert network.dialled == [PUBLIC]

    async def test_allowed_network_is_reachable_on_any_port(
        self, client: GuardedClient, server: LoopbackServer, network: Network
    ) -> None:
        server.answers["/"] = answer(b"inside")
        for host in ("server.test", "127.0.0.1", "[::ffff:127.0.0.1]"):
            response = await client.request("GET", server.url("/", host=host))
            assert response.content == b"inside"
        assert [request.headers["host"].rpartition(":")[0] for request in server.received] == [
            "server.test",
            "127.0.0.1",
            "[::ffff:127.0.0.1]",
        ]
        assert network.dialled == ["127.0.0.1"] * 3
        assert await refusal(client, "http://10.0.0.1/") == "address_refused"

    async def test_proxy_variables_are_ignored(
        self, strict: GuardedClient, network: Network, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:3128")
        assert await refusal(strict, "http://public.test/") == "connection_failed"
        assert network.dialled == [PUBLIC]

    @pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", PUBLIC, "2001:4860:4860::8888", "2a00:1450::1"])
    async def test_public_addresses_are_allowed(self, strict: GuardedClient, network: Network, address: str) -> None:
        host = f"[{address}]" if ":" in address else address
        assert await refusal(strict, f"https://{host}/") == "connection_failed"
        assert [ip_address(each) for each in network.dialled] == [ip_address(address)]


class TestRedirects:
    async def test_redirect_is_returned_unless_followed(self, client: GuardedClient, server: LoopbackServer) -> None:
        server.answers["/"] = answer(status="302 Found", headers={"Location": "/next"})
        response = await client.request("GET", server.url("/"))
        assert (response.status, response.headers["location"], len(server.received)) == (302, "/next", 1)

    async def test_at_most_three_redirects_are_followed(self, client: GuardedClient, server: LoopbackServer) -> None:
        for number in range(1, 5):
            server.answers[f"/{number}"] = answer(status="302 Found", headers={"Location": f"/{number - 1}"})
        server.answers["/0"] = answer(b"there")
        response = await client.request("GET", server.url("/3#part"), follow_redirects=True)
        assert (response.content, response.url) == (b"there", server.url("/0"))
        assert await refusal(client, server.url("/4"), follow_redirects=True) == "too_many_redirects"

    @pytest.mark.parametrize(
        ("status", "method", "followed", "body"),
        [
            ("301 Moved", "POST", "GET", b""),
            ("302 Found", "POST", "GET", b""),
            ("302 Found", "PUT", "PUT", b"secret"),
            ("303 See Other", "PUT", "GET", b""),
            ("303 See Other", "HEAD", "HEAD", b""),
            ("307 Temporary", "POST", "POST", b"secret"),
            ("308 Permanent", "POST", "POST", b"secret"),
        ],
    )
    async def test_status_determines_method_and_body_of_a_redirect(
        self, client: GuardedClient, server: LoopbackServer, status: str, method: str, followed: str, body: bytes
    ) -> None:
        server.answers |= {"/": answer(status=status, headers={"Location": "/next"}), "/next": answer()}
        content = None if method == "HEAD" else b"secret"
        headers = {"Content-Type": "text/plain", "X-Api-Key": "mine"}
        await client.request(method, server.url("/"), content=content, headers=headers, follow_redirects=True)
        last = server.received[-1]
        assert (last.method, last.path, last.body) == (followed, "/next", body)
        assert last.headers["x-api-key"] == "mine"
        assert ("content-type" in last.headers) == bool(body)

    async def test_redirect_to_another_origin_keeps_only_safe_headers(
        self, client: GuardedClient, server: LoopbackServer, network: Network
    ) -> None:
        location = server.url("/next", host="server.test")
        server.answers |= {"/": answer(status="302 Found", headers={"Location": location}), "/next": answer()}
        headers = {"Accept": "text/x", "Authorization": "Bearer a", "Cookie": "b", "X-Api-Key": "c", "User-Agent": "d"}
        headers["BloxServer-Depth"] = "3"
        await client.request("GET", server.url("/"), headers=headers, follow_redirects=True)
        assert server.received[0].headers["x-api-key"] == "c"
        assert server.received[1].headers == {
            "host": f"server.test:{server.port}",
            "connection": "close",
            "accept-encoding": "gzip",
            "accept": "text/x",
            "user-agent": "d",
            "bloxserver-depth": "3",
        }

    @pytest.mark.parametrize(
        ("location", "path"),
        [
            ("/é?q=ü".encode(), "/%C3%A9?q=%C3%BC"),
            ("/日本 語".encode(), "/%E6%97%A5%E6%9C%AC%20%E8%AA%9E"),
            (b"/%C3%A9%2F?a=%20b+c", "/%C3%A9%2F?a=%20b+c"),
            (b"/caf\xe9", "/caf%C3%A9"),
            ("//sérver.test:{port}/é".encode(), "/%C3%A9"),
            (b"next#fragment", "/next"),
        ],
        ids=ascii,
    )
    async def test_redirect_with_a_utf8_location_is_followed(
        self,
        client: GuardedClient,
        server: LoopbackServer,
        network: Network,
        monkeypatch: pytest.MonkeyPatch,
        location: bytes,
        path: str,
    ) -> None:
        monkeypatch.setitem(NAMES, "xn--srver-bsa.test", [["127.0.0.1"]])
        sent = location.replace(b"{port}", b"%d" % server.port)
        server.answers |= {
            "/": b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + sent + b"\r\n\r\n",
            path.partition("?")[0]: answer(b"there"),
        }
        response = await client.request("GET", server.url("/"), follow_redirects=True)
        assert (response.content, server.received[-1].path) == (b"there", path)

    @pytest.mark.parametrize("status", ["307 Temporary", "308 Permanent"])
    async def test_body_is_not_sent_to_another_origin(
        self, client: GuardedClient, server: LoopbackServer, network: Network, status: str
    ) -> None:
        server.answers["/"] = answer(status=status, headers={"Location": server.url("/", host="server.test")})
        code = await refusal(client, server.url("/"), "POST", content=b"secret", follow_redirects=True)
        assert (code, len(server.received)) == ("redirect_refused", 1)


class TestRequests:
    @pytest.mark.parametrize(
        "header",
        [
            *((name, "x") for name in ("", "X Y", "é", "X:", "X\n")),
            *(("X", value) for value in ("é", "日", "\ud800", "a\r\nY: b", "\0", "x\n")),
        ],
        ids=ascii,
    )
    async def test_invalid_headers_are_rejected(
        self, client: GuardedClient, server: LoopbackServer, header: tuple[str, str]
    ) -> None:
        assert await refusal(client, server.url("/"), headers=dict([header])) == "invalid_header"
        assert server.received == []

    @pytest.mark.parametrize("method", ["", "GET /", "G\r\nET", "é"])
    async def test_invalid_methods_are_rejected(
        self, client: GuardedClient, server: LoopbackServer, method: str
    ) -> None:
        assert await refusal(client, server.url("/"), method) == "invalid_request"
        assert server.received == []

    async def test_framing_headers_of_the_caller_are_ignored(
        self, client: GuardedClient, server: LoopbackServer
    ) -> None:
        server.answers["/"] = answer()
        headers = {"Host": "inside", "content-length": "3", "Transfer-Encoding": "chunked", "X": " kept "}
        await client.request("POST", server.url("/?a=b"), content=b"whole", headers=headers)
        [request] = server.received
        assert (request.method, request.path, request.body) == ("POST", "/?a=b", b"whole")
        assert request.headers == {
            "host": f"127.0.0.1:{server.port}",
            "connection": "close",
            "accept-encoding": "gzip",
            "accept": "*/*",
            "user-agent": "BloxServer",
            "x": "kept",
            "content-length": "5",
        }

    async def test_cookies_are_not_kept_between_requests(self, client: GuardedClient, server: LoopbackServer) -> None:
        server.answers["/"] = answer(headers={"Set-Cookie": "session=1"})
        for _ in range(2):
            await client.request("GET", server.url("/"))
        assert "cookie" not in server.received[1].headers

    async def test_requests_run_concurrently(self, client: GuardedClient, server: LoopbackServer) -> None:
        all_here = asyncio.Event()

        async def together(writer: StreamWriter) -> None:
            if len(server.received) == 400:
                all_here.set()
            await all_here.wait()
            writer.write(answer(b"ok"))

        server.answers["/"] = together
        requests = (client.request("GET", server.url("/"), timeout_seconds=30) for _ in range(400))
        assert [response.content for response in await asyncio.gather(*requests)] == [b"ok"] * 400
