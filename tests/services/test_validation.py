"""Definitions that are parsed and checked, with and without a database."""

from __future__ import annotations

from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.errors import NotFound
from bloxserver.models.default_organism import DEFAULT_ORGANISM
from bloxserver.models.tables import UserRecord
from bloxserver.organism.problems import OrganismError
from bloxserver.organism.requirements import ModelRequirement, SecretRequirement
from bloxserver.services.validation import (
    LARGE,
    check_definition,
    parse_organism,
    read_all,
    validate,
    validate_flow,
)
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
PADDING = "#" * LARGE
"""A comment that makes a definition large enough to be parsed in a thread."""


@pytest.fixture
async def user(session: AsyncSession) -> UserRecord:
    return await create_user(session)


@pytest.mark.parametrize("padding", ["", PADDING], ids=["small", "large"])
async def test_text_is_parsed_once(padding: str) -> None:
    text = DEFAULT_ORGANISM + padding
    organism = await parse_organism(text)
    assert [listener.name for listener in organism.listeners] == ["greeter"]
    assert await parse_organism(text) is organism


@pytest.mark.parametrize("padding", ["", PADDING], ids=["small", "large"])
async def test_invalid_text_raises_its_problems(padding: str) -> None:
    with pytest.raises(OrganismError) as error:
        await parse_organism(AGENT + padding)
    assert [(problem.line, problem.code) for problem in error.value.problems] == [(4, "unknown_handler")]


@pytest.mark.parametrize("padding", ["", PADDING], ids=["small", "large"])
async def test_validation_merges_problems_of_text_and_installation_in_the_order_of_the_text(
    session: AsyncSession, user: UserRecord, padding: str
) -> None:
    problems = await validate(session, SETTINGS, user.id, (AGENT + padding).encode())
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


def test_requirements_are_known_although_the_definition_has_errors() -> None:
    problems, requirements = read_all(AGENT.encode())
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
    assert any(isinstance(requirement, SecretRequirement) for requirement in read_all(definition)[1])
    assert check_definition(settings, definition) == []
    problems = await validate(session, settings, user.id, definition)
    assert [problem.code for problem in problems] == ["missing_secret"]
