"""Definitions that are parsed and checked, with and without a database."""

from __future__ import annotations

from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.encryption import get_cipher
from bloxserver.errors import NotFound
from bloxserver.models.default_organism import DEFAULT_ORGANISM
from bloxserver.models.tables import UserRecord
from bloxserver.organism.requirements import ModelRequirement, SecretRequirement
from bloxserver.services.secrets import set_secret
from bloxserver.services.validation import check, check_definition, validate, validate_flow
from bloxserver.settings import Settings
from tests.factories import create_flow, create_user

SETTINGS = Settings(database_url="sqlite+aiosqlite:///:memory:")
AGENT = """\
organism: {name: x}
listeners:
  - {name: a, description: d, prompt: hi, model: m, peers: [b]}
  - {name: b, description: d, handler: unknown, peers: []}
"""
"""An agent needs a language model, which the settings do not have, and a handler is unknown."""
AGENT_CODES = [(3, "missing_llm"), (4, "unknown_handler")]


async def test_validation_merges_problems_of_text_and_installation_in_the_order_of_the_text(
    session: AsyncSession, user: UserRecord
) -> None:
    problems = await validate(session, SETTINGS, user.id, AGENT.encode())
    assert [(problem.line, problem.code) for problem in problems] == AGENT_CODES


@pytest.mark.parametrize("definition", [b"", b"\xff", b"a: [", b"nonsense"])
async def test_definition_that_is_no_mapping_in_yaml_has_a_problem(
    session: AsyncSession, user: UserRecord, definition: bytes
) -> None:
    problems = await validate(session, SETTINGS, user.id, definition)
    assert [problem.severity for problem in problems] == ["error"]
    assert check_definition(SETTINGS, definition) == problems


async def test_flow_is_validated_with_its_own_or_another_definition(session: AsyncSession, user: UserRecord) -> None:
    flow = await create_flow(session, user, organism_yaml=AGENT)
    own = await validate_flow(session, SETTINGS, user.id, flow.id, None)
    assert [(problem.line, problem.code) for problem in own] == AGENT_CODES
    assert await validate_flow(session, SETTINGS, user.id, flow.id, DEFAULT_ORGANISM.encode()) == []
    assert flow.organism_yaml == AGENT


@pytest.mark.parametrize("definition", [None, DEFAULT_ORGANISM.encode()], ids=["own", "another"])
async def test_flow_is_validated_only_for_its_owner(
    session: AsyncSession, user: UserRecord, definition: bytes | None
) -> None:
    other = await create_user(session)
    flow, deleted = await create_flow(session, user), await create_flow(session, user, deleted_at=now())
    for user_id, flow_id in ((other.id, flow.id), (user.id, deleted.id), (user.id, uuid4())):
        with pytest.raises(NotFound) as error:
            await validate_flow(session, SETTINGS, user_id, flow_id, definition)
        assert (error.value.code, error.value.status) == ("flow_not_found", 404)


async def test_requirements_are_known_although_the_definition_has_errors() -> None:
    problems, requirements = await check(AGENT.encode(), "tenant")
    assert [problem.code for problem in problems] == ["unknown_handler"]
    [requirement] = requirements
    assert isinstance(requirement, ModelRequirement)
    assert (requirement.listener, requirement.model) == ("a", "m")


def test_check_without_settings_reports_problems_of_the_text_only() -> None:
    assert [problem.code for problem in check_definition(None, AGENT.encode())] == ["unknown_handler"]
    assert [(problem.line, problem.code) for problem in check_definition(SETTINGS, AGENT.encode())] == AGENT_CODES


async def test_only_validation_with_a_database_reports_secrets_that_are_not_stored(
    session: AsyncSession, user: UserRecord
) -> None:
    url = "url: 'https://example.com/{{ secrets.TOKEN }}'"
    listener = f"{{name: a, description: d, handler: http.request, config: {{{url}}}, peers: []}}"
    definition = f"organism: {{name: x}}\nlisteners:\n  - {listener}\n".encode()
    settings = Settings(
        database_url="sqlite+aiosqlite:///:memory:",
        api_key_encryption_key="new-key-of-an-operator-93d4a86b1f",  # type: ignore[arg-type]
    )
    assert any(
        isinstance(requirement, SecretRequirement) for requirement in (await check(definition, user.id)).requirements
    )
    assert check_definition(settings, definition) == []
    problems = await validate(session, settings, user.id, definition)
    assert [problem.code for problem in problems] == ["missing_secret"]


async def test_value_that_is_invalid_with_its_secret_is_a_problem(session: AsyncSession, user: UserRecord) -> None:
    config = "{url: 'https://example.com', secret: '{{ secrets.SIGNING }}'}"
    listener = f"{{name: a, description: d, handler: webhook.send, config: {config}}}"
    definition = f"organism: {{name: x}}\nlisteners:\n  - {listener}\n".encode()
    settings = Settings(
        database_url="sqlite+aiosqlite:///:memory:",
        api_key_encryption_key="new-key-of-an-operator-93d4a86b1f",  # type: ignore[arg-type]
    )
    cipher = get_cipher(settings)
    assert cipher is not None
    for value, codes in (("abc", ["invalid_secret"]), ("whsec_" + "A" * 32, [])):
        await set_secret(session, cipher, user.id, "SIGNING", value)
        problems = await validate(session, settings, user.id, definition)
        assert [problem.code for problem in problems] == codes


async def test_definition_that_is_too_costly_to_read_is_refused(session: AsyncSession, user: UserRecord) -> None:
    """The patterns take longer to compile than the CPU time of a task."""
    pattern = "(?:" + "|".join(["a{900}"] * 100) + "){9}"
    case = f"{{when: 'payload.x.matches(\"{pattern}\")', to: a}}"
    cases = ", ".join([case] * 300)
    listener = f"{{name: a, description: d, handler: branch, config: {{cases: [{cases}], otherwise: a}}}}"
    definition = f"organism: {{name: x}}\nlisteners:\n  - {listener}\n".encode()
    problems = await validate(session, SETTINGS, user.id, definition)
    assert {problem.code for problem in problems} <= {"too_costly", "invalid_config"}
    assert problems
