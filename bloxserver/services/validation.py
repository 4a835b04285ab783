"""Checks of definitions before a start.

`preflight` and the parser are imported when they are needed: they import the clients of all services.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from typing import NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.errors import Unavailable
from bloxserver.event_loop import in_parts
from bloxserver.isolation import IsolationUnavailable
from bloxserver.models.database import release
from bloxserver.organism.load import run_isolated
from bloxserver.organism.messages import limit_problems, problems_of_json, requirements_of_json
from bloxserver.organism.problems import OrganismError, Problem
from bloxserver.organism.requirements import Requirement
from bloxserver.queries.flows import read_flow, require_flow
from bloxserver.settings import Settings


class Checked(NamedTuple):
    """The problems of a definition, and its requirements on the installation."""

    problems: list[Problem]
    requirements: list[Requirement]


async def check(definition: bytes, tenant: Hashable) -> Checked:
    """Check a definition in another process. Raises `IsolationUnavailable`."""
    from bloxserver.services.preflight import PART_REQUIREMENTS

    try:
        checked = await run_isolated("organism.check", definition, tenant)
    except OrganismError as error:
        return Checked(error.problems, [])
    requirements: list[Requirement] = []
    async for part in in_parts(checked["requirements"], PART_REQUIREMENTS):
        requirements += requirements_of_json(part)
    return Checked(problems_of_json(checked["problems"]), requirements)


async def validate(
    session: AsyncSession, settings: Settings, user_id: UUID, definition: bytes, flow_id: UUID | None = None
) -> list[Problem]:
    """All problems of a definition for this user and this flow, in the order of its text. Raises `Unavailable`."""
    from bloxserver.services.preflight import check_installation

    await release(session)
    try:
        checked = await check(definition, user_id)
        found = await check_installation(session, settings, user_id, checked.requirements, flow_id)
        problems = [*checked.problems, *found.problems]
        if found.secrets:
            await release(session)
            problems += await check_secret_values(definition, found.secrets, user_id)
    except IsolationUnavailable as error:
        raise Unavailable("isolation_unavailable", f"The definition cannot be checked now: {error}") from None
    return limit_problems(sorted(problems, key=lambda problem: (problem.line, problem.column)))


async def check_secret_values(definition: bytes, secrets: dict[str, str], tenant: Hashable) -> list[Problem]:
    """The values that are invalid with these secrets. Raises `IsolationUnavailable`."""
    request = json.dumps({"definition": definition.decode(errors="replace"), "secrets": secrets}).encode()
    try:
        return problems_of_json((await run_isolated("organism.check_secrets", request, tenant))["problems"])
    except OrganismError as error:
        return error.problems


async def validate_flow(
    session: AsyncSession, settings: Settings, user_id: UUID, flow_id: UUID, definition: bytes | None
) -> list[Problem]:
    """Validate the flow's definition, or another one for the flow. Raises `NotFound` and `Unavailable`."""
    if definition is None:
        flow = await read_flow(session, user_id, flow_id)
        definition = flow.organism_yaml.encode(errors="surrogatepass")
    else:
        await require_flow(session, user_id, flow_id)
    return await validate(session, settings, user_id, definition, flow_id)


def check_definition(settings: Settings | None, definition: bytes) -> list[Problem]:
    """All problems that are found without a database, in the order of the text. Without `settings`, skip preflight.

    It runs in this process, and blocks it.
    """
    from bloxserver.organism.isolated import read_definition
    from bloxserver.services.preflight import settings_problems

    reading = read_definition(definition)
    found = settings_problems(settings, reading.requirements) if settings is not None else []
    return sorted([*reading.problems, *found], key=lambda problem: (problem.line, problem.column))
