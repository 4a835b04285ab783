"""Parsing and checking of definitions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import lru_cache
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.blocks.registry import get_registry
from bloxserver.organism.model import Organism
from bloxserver.organism.parse import parse, read
from bloxserver.organism.problems import OrganismError, Problem
from bloxserver.organism.requirements import Requirement
from bloxserver.organism.yaml_loader import decode
from bloxserver.queries.flows import read_flow, require_flow
from bloxserver.services.preflight import installation_problems, settings_problems
from bloxserver.settings import Settings

LARGE = 32 * 1024
"""Longer definitions are parsed in a thread: parsing them would block the event loop."""


@lru_cache(maxsize=256)
def _parsed(text: str) -> Organism:
    return parse(text, get_registry())


async def parse_organism(text: str) -> Organism:
    """The definition, parsed once per text. Raises `OrganismError`."""
    if len(text) > LARGE:
        return await asyncio.to_thread(_parsed, text)
    return _parsed(text)


async def validate(
    session: AsyncSession, settings: Settings, user_id: UUID, definition: bytes, flow_id: UUID | None = None
) -> list[Problem]:
    """All problems of a definition for this user and this flow, in the order of its text."""
    if len(definition) > LARGE:
        problems, requirements = await asyncio.to_thread(read_all, definition)
    else:
        problems, requirements = read_all(definition)
    problems = [*problems, *await installation_problems(session, settings, user_id, requirements, flow_id)]
    return sorted(problems, key=lambda problem: (problem.line, problem.column))


async def validate_flow(
    session: AsyncSession, settings: Settings, user_id: UUID, flow_id: UUID, definition: bytes | None
) -> list[Problem]:
    """Validate the flow's definition, or another one for the flow. Raises `NotFound`."""
    if definition is None:
        flow = await read_flow(session, user_id, flow_id)
        definition = flow.organism_yaml.encode(errors="surrogatepass")
    else:
        await require_flow(session, user_id, flow_id)
    return await validate(session, settings, user_id, definition, flow_id)


def read_all(definition: bytes) -> tuple[Sequence[Problem], Sequence[Requirement]]:
    """The problems of a definition, and its requirements on the installation."""
    try:
        _, problems, requirements = read(decode(definition), get_registry())
    except OrganismError as error:
        return error.problems, ()
    return problems, requirements


def check_definition(settings: Settings | None, definition: bytes) -> list[Problem]:
    """All problems that are found without a database, in the order of the text. Without `settings`, skip preflight."""
    problems, requirements = read_all(definition)
    found = [*problems, *(settings_problems(settings, requirements) if settings is not None else ())]
    return sorted(found, key=lambda problem: (problem.line, problem.column))
