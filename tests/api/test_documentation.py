"""The pages at `/docs` and `/redoc`: everything that they load comes from this server."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from urllib.parse import urljoin

import httpx
import pytest

from bloxserver.api.main import create_app
from bloxserver.api.routes import documentation
from tests.api.contract import assert_problem
from tests.clerk import override_settings
from tests.conftest import api_client

PAGES = ("/docs", "/redoc")
ORIGIN = "http://test"


class Loaded(HTMLParser):
    """Collects the addresses that a page loads, and its inline scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.inline: list[str] = []
        self._in_script = False
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._in_script = tag == "script"
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "spec-url")]
        self.inline += [name for name, _ in attributes if name.startswith("on") or name == "style"]

    def handle_data(self, data: str) -> None:
        if self._in_script and data.strip():
            self.inline.append(data)


def policy(response: httpx.Response) -> dict[str, list[str]]:
    directives = [part.split() for part in response.headers["Content-Security-Policy"].split("; ")]
    return {name: values for name, *values in directives}


@pytest.mark.parametrize("path", PAGES)
class TestPage:
    async def test_page_loads_only_from_this_server(self, path: str) -> None:
        async with api_client() as client:
            page = await client.get(path)
            loaded = Loaded(page.text)
            assert loaded.addresses
            for address in loaded.addresses:
                if address != "data:,":
                    target = urljoin(f"{ORIGIN}{path}", address)
                    assert target.startswith(f"{ORIGIN}/")
                    assert (await client.get(target)).status_code == 200, address
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        assert re.findall(r"//", page.text) == [], "no address of another origin"

    async def test_policy_allows_no_other_origin_and_no_inline_script(self, path: str) -> None:
        async with api_client() as client:
            page = await client.get(path)
        assert Loaded(page.text).inline == []
        allowed = policy(page)
        assert allowed["default-src"] == ["'none'"]
        assert allowed["script-src"] == allowed["connect-src"] == ["'self'"]
        assert {value for values in allowed.values() for value in values} <= {
            *("'none'", "'self'", "'unsafe-inline'", "data:", "blob:")
        }
        assert [name for name, values in allowed.items() if "'unsafe-inline'" in values] == ["style-src"]
        assert allowed["frame-ancestors"] == allowed["base-uri"] == allowed["form-action"] == ["'none'"]

    async def test_page_does_not_exist_without_enable_docs(self, path: str) -> None:
        with override_settings(ENABLE_DOCS="false"):
            app = create_app()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=ORIGIN) as client:
            for missing in (path, "/docs/assets/docs.js"):
                assert_problem(await client.get(missing), 404, "not_found", "Not Found")


async def test_assets_have_their_types_and_other_files_are_not_served() -> None:
    async with api_client() as client:
        for name, media_type in documentation.MEDIA_TYPES.items():
            answer = await client.get(f"/docs/assets/{name}")
            assert answer.content == (documentation.ASSETS / name).read_bytes()
            assert answer.headers["Content-Type"] == f"{media_type}; charset=utf-8"
            assert answer.headers["Cache-Control"] == "public, max-age=3600"
        for name in ("docs.html", "redoc.LICENSE.txt", "..%2Fmain.py", "%2Fetc%2Fpasswd", "none"):
            assert (await client.get(f"/docs/assets/{name}")).status_code == 404


async def test_swagger_ui_reads_the_document_of_this_server() -> None:
    async with api_client() as client:
        script = (await client.get("/docs/assets/docs.js")).text
        assert re.findall(r'url: "([^"]+)"', script) == ["openapi.json"]
        assert json.loads((await client.get("/openapi.json")).text)["openapi"].startswith("3.1")


def test_licences_are_packaged_with_the_assets() -> None:
    names = {path.name for path in documentation.ASSETS.iterdir()}
    assert {"swagger-ui.LICENSE.txt", "swagger-ui.NOTICE.txt", "redoc.LICENSE.txt"} <= names
    assert {f"{name}.LICENSE.txt" for name in names if name.endswith(("bundle.js", "standalone.js"))} <= names
