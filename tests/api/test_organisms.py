"""Validation of definitions over HTTP."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from bloxserver.models.database import Database
from bloxserver.models.default_organism import DEFAULT_ORGANISM
from bloxserver.models.tables import FlowRecord, SecretRecord, UserRecord
from bloxserver.organism.messages import MAX_PROBLEMS
from bloxserver.services.validation import validate
from bloxserver.settings import get_settings
from tests import factories
from tests.api.contract import API, assert_invalid, assert_problem, covers, eventually, path_of
from tests.statements import count_statements

VALIDATE = f"{API}/organisms/validate"
EMPTY: list[dict[str, Any]] = [{}, {"json": {}}, {"json": {"organismYaml": None}}]
BROKEN = """\
organism: {name: x}
listeners:
  - name: a
    handler: ecko
    unknown: 1
"""
NEEDY = """\
organism: {name: x}
listeners:
  - name: ask
    description: d
    handler: http.request
    config:
      url: "https://example.com"
      headers: {Authorization: "Bearer {{ secrets.TOKEN }}"}
    peers: [think]
  - name: think
    description: d
    prompt: Think.
"""


def rows(response: httpx.Response) -> list[tuple[int, int, str]]:
    assert response.status_code == 200, response.text
    return [(one["line"], one["column"], one["code"]) for one in response.json()["problems"]]


@covers("organisms.validate")
class TestValidateOrganism:
    async def test_every_problem_has_its_position_and_a_hint(self, client: httpx.AsyncClient) -> None:
        response = await client.post(VALIDATE, content=BROKEN)
        assert response.status_code == 200
        assert response.json()["valid"] is False
        [missing, unknown, warning] = response.json()["problems"]
        assert unknown == {
            "line": 4,
            "column": 14,
            "code": "unknown_handler",
            "severity": "error",
            "message": 'unknown handler "ecko"',
            "hint": 'did you mean "echo"?',
            "path": ["listeners", 0, "handler"],
        }
        assert (missing["code"], missing["path"]) == ("missing_field", ["listeners", 0, "description"])
        assert (warning["severity"], warning["code"]) == ("warning", "unknown_key")

    async def test_definition_with_warnings_only_is_valid(self, client: httpx.AsyncClient) -> None:
        assert (await client.post(VALIDATE, content=DEFAULT_ORGANISM)).json() == {"valid": True, "problems": []}
        response = await client.post(VALIDATE, content=f"{DEFAULT_ORGANISM}mine: 1\n")
        assert response.json()["valid"] is True
        assert [one["code"] for one in response.json()["problems"]] == ["unknown_key"]

    @pytest.mark.parametrize("kind", ["application/yaml", "text/plain", "x", "application/x-www-form-urlencoded", None])
    async def test_body_of_any_content_type_is_the_definition(
        self, client: httpx.AsyncClient, kind: str | None
    ) -> None:
        headers = {"Content-Type": kind} if kind else {}
        assert len(rows(await client.post(VALIDATE, content=BROKEN, headers=headers))) == 3

    @pytest.mark.parametrize("name", ["organismYaml", "organism_yaml"])
    async def test_json_body_may_contain_the_definition_as_text(self, client: httpx.AsyncClient, name: str) -> None:
        assert len(rows(await client.post(VALIDATE, json={name: BROKEN, "other": 1}))) == 3

    async def test_json_body_may_be_the_definition(self, client: httpx.AsyncClient) -> None:
        listener = {"name": "a", "description": "d", "handler": "echo"}
        sound = {"organism": {"name": "x"}, "listeners": [listener]}
        assert (await client.post(VALIDATE, json=sound)).json() == {"valid": True, "problems": []}
        broken = sound | {"listeners": [listener | {"handler": "ecko"}]}
        assert [code for *_, code in rows(await client.post(VALIDATE, json=broken))] == ["unknown_handler"]

    async def test_definition_that_is_not_text_is_rejected(self, client: httpx.AsyncClient) -> None:
        assert_invalid(await client.post(VALIDATE, json={"organismYaml": 5}), "body.organismYaml")

    @pytest.mark.parametrize(
        ("body", "kind", "code"),
        [
            (b"", "text/plain", "wrong_type"),
            (b"{}", "application/json", "wrong_type"),
            (b'{"organismYaml": null}', "application/json", "wrong_type"),
            (b"null", "application/json", "wrong_type"),
            (b"[]", "application/json", "wrong_type"),
            (b'{"a": ', "application/json", "yaml_syntax"),
            (b"[" * 100_000, "application/json", "yaml_limit"),
            (b"[" * 100_000, "text/plain", "yaml_limit"),
            (b"a: &a [*a]", "text/plain", "yaml_limit"),
            (b"a: " + b"x" * 500_000, "text/plain", "yaml_limit"),
            (b"- a\n" * 100_000, "text/plain", "yaml_limit"),
            (b"\xff\xfe\0", "application/octet-stream", "yaml_syntax"),
            (b"a: \xc3", "application/json", "yaml_syntax"),
            (b"\0", "text/plain", "yaml_syntax"),
            (rb'{"organismYaml": "a: \ud800"}', "application/json", "yaml_syntax"),
            (rb'{"organismYaml": "a: \u0000"}', "application/json", "yaml_syntax"),
            (b'{"organismYaml": "a: ' + b"9" * 5000 + b'"}', "application/json", "out_of_range"),
            (b'{"a": ' + b"9" * 5000 + b"}", "application/json", "out_of_range"),
        ],
    )
    async def test_invalid_definition_is_reported_as_problems(
        self, client: httpx.AsyncClient, body: bytes, kind: str, code: str
    ) -> None:
        response = await client.post(VALIDATE, content=body, headers={"Content-Type": kind})
        assert response.status_code == 200
        assert response.json()["valid"] is False
        assert code in [one["code"] for one in response.json()["problems"]]
        assert all(one["hint"] and one["message"] for one in response.json()["problems"])

    async def test_first_of_thousands_of_problems_are_reported(self, client: httpx.AsyncClient) -> None:
        text = "organism: {name: x}\nlisteners:\n" + "  - {name: a, handler: ecko, peers: [b], zzz: 1}\n" * 1500
        response = await client.post(VALIDATE, content=text)
        *problems, (_, _, last) = rows(response)
        assert (len(problems), last, response.json()["valid"]) == (200, "more_problems", False)

    async def test_number_of_problems_with_the_installation_is_limited(self, client: httpx.AsyncClient) -> None:
        config = "{url: 'https://a.example/', headers: {a: '{{ secrets.A }}'}}"
        listener = "{name: n%d, description: d, handler: http.request, config: " + config + "}"
        text = "organism: {name: x}\nlisteners:\n" + "".join(f"  - {listener % number}\n" for number in range(300))
        response = await client.post(VALIDATE, content=text)
        assert [code for _, _, code in rows(response)] == ["missing_secret"] * 200 + ["more_problems"]

    async def test_large_definition_does_not_block_the_event_loop(
        self, dev_user: UserRecord, session: AsyncSession
    ) -> None:
        text = "organism: {name: x}\nlisteners:\n" + "  - {name: a, handler: ecko, peers: [b], zzz: 1}\n" * 1900
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0.001)  # without a pause, this would take half of the time of the validation
                turns += 1

        counting = asyncio.create_task(count())
        problems = await validate(session, get_settings(), dev_user.id, text.encode())
        counting.cancel()
        assert len(problems) == MAX_PROBLEMS + 1
        assert turns > 0, "validation on the event loop would not let other tasks run"

    async def test_validation_stores_nothing(
        self, client: httpx.AsyncClient, dev_user: UserRecord, session: AsyncSession
    ) -> None:
        await client.post(VALIDATE, content=DEFAULT_ORGANISM)
        assert await session.scalar(sa.select(sa.func.count()).select_from(FlowRecord)) == 0

    async def test_validation_does_not_wait_for_writers(
        self, live_client: httpx.AsyncClient, live_database: Database
    ) -> None:
        await live_client.get(f"{API}/me")
        async with live_database.transaction() as writer:
            await writer.execute(sa.update(UserRecord).values(name="Writing"))
            async with asyncio.timeout(2):
                assert (await live_client.post(VALIDATE, content=DEFAULT_ORGANISM)).json()["valid"] is True


class TestInstallation:
    async def test_missing_secrets_and_models_are_reported(
        self, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        response = await client.post(VALIDATE, content=NEEDY)
        assert rows(response) == [(8, 40, "missing_secret"), (12, 13, "missing_llm")]
        assert response.json()["valid"] is False
        assert all(one["hint"] for one in response.json()["problems"])

    async def test_existing_secrets_and_models_are_not_reported(
        self, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LLM_API_KEY", "k")
        monkeypatch.setenv("LLM_MODEL", "m")
        monkeypatch.setenv("API_KEY_ENCRYPTION_KEY", "k" * 32)
        get_settings.cache_clear()
        try:
            assert rows(await client.post(VALIDATE, content=NEEDY)) == [(8, 40, "missing_secret")]
            assert (await client.put("/api/v1/secrets/TOKEN", json={"value": "s"})).is_success
            assert (await client.post(VALIDATE, content=NEEDY)).json() == {"valid": True, "problems": []}
        finally:
            get_settings.cache_clear()

    async def test_missing_secrets_are_reported_together_with_other_errors(self, client: httpx.AsyncClient) -> None:
        broken = NEEDY.replace("peers: [think]", "peers: [thing]").replace("name: x", "name: 5")
        expected = [(1, 18, "wrong_type"), (8, 40, "missing_secret"), (9, 13, "unknown_peer"), (12, 13, "missing_llm")]
        assert rows(await client.post(VALIDATE, content=broken)) == expected

    async def test_secrets_of_other_users_are_not_used(self, client: httpx.AsyncClient, session: AsyncSession) -> None:
        stranger = await factories.create_user(session)
        session.add(SecretRecord(user_id=stranger.id, name="TOKEN", ciphertext="s"))
        await session.commit()
        assert "missing_secret" in [code for *_, code in rows(await client.post(VALIDATE, content=NEEDY))]


@covers("flows.validate")
class TestValidateFlow:
    async def test_stored_definition_is_validated_without_a_body(
        self, client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
    ) -> None:
        assert (await client.post(f"{path_of(flow)}/validate")).json() == {"valid": True, "problems": []}
        flow.organism_yaml = BROKEN
        await session.commit()
        for sent in EMPTY:
            assert len(rows(await client.post(f"{path_of(flow)}/validate", **sent))) == 3

    async def test_definition_in_the_body_is_validated(self, client: httpx.AsyncClient, flow: FlowRecord) -> None:
        assert len(rows(await client.post(f"{path_of(flow)}/validate", content=BROKEN))) == 3
        assert len(rows(await client.post(f"{path_of(flow)}/validate", json={"organismYaml": BROKEN}))) == 3
        stored: dict[str, Any] = (await client.get(path_of(flow))).json()
        assert stored["organismYaml"] == DEFAULT_ORGANISM

    @pytest.mark.parametrize("body", [b"", b"organism: {}"])
    async def test_flow_of_another_user_is_not_found(
        self, client: httpx.AsyncClient, session: AsyncSession, body: bytes
    ) -> None:
        theirs = await factories.create_flow(session, await factories.create_user(session))
        for flow_id in (theirs.id, uuid4()):
            response = await client.post(f"{API}/flows/{flow_id}/validate", content=body)
            assert_problem(response, 404, "flow_not_found", "Flow not found")

    async def test_validation_reports_the_problem_that_a_start_reports(
        self, live_client: httpx.AsyncClient, live_database: Database, engine: object
    ) -> None:
        created = (await live_client.post(f"{API}/flows", json={"name": "F", "organismYaml": BROKEN})).json()
        path = f"{API}/flows/{created['id']}"
        first = (await live_client.post(f"{path}/validate")).json()["problems"][0]
        await live_client.post(f"{path}/start")
        flow = await eventually(live_client, path, {"error", "running"})
        assert flow["status"] == "error"
        assert flow["errorMessage"].startswith(
            f"line {first['line']}, column {first['column']}: {first['message']}; {first['hint']}"
        )

    async def test_validation_needs_few_statements(
        self, client: httpx.AsyncClient, flow: FlowRecord, database_engine: AsyncEngine
    ) -> None:
        with count_statements(database_engine) as statements:
            await client.post(f"{path_of(flow)}/validate")
        assert len(statements) == 2, statements
        with count_statements(database_engine) as statements:
            await client.post(VALIDATE, content=json.dumps(BROKEN))
        assert len(statements) == 1, statements
