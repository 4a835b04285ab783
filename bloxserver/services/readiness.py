"""What a valid definition needs and this installation, or its owner, does not have."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.blocks.agent import AgentConfig, agent
from bloxserver.blocks.templates import secret_names
from bloxserver.clients.llm import LanguageModels
from bloxserver.organism.model import Listener, Organism
from bloxserver.organism.problems import Problem, quoted
from bloxserver.organism.yaml_loader import Place
from bloxserver.services.secrets import missing_secrets
from bloxserver.settings import Settings


async def installation_problems(
    session: AsyncSession, settings: Settings, user_id: UUID, organism: Organism
) -> list[Problem]:
    """Language models that are not configured, and secrets that the user has not stored, in the order of the text."""
    models = LanguageModels(settings)
    problems = [problem for listener in organism.listeners if (problem := _model_problem(models, listener))]
    needed = dict(_secrets(organism))
    missing = await missing_secrets(session, user_id, frozenset(needed)) if needed else set()
    for name in missing:
        hint = f"store it: PUT /api/v1/secrets/{name}"
        problems.append(Problem(*needed[name], "missing_secret", f"there is no secret {quoted(name)}", hint))
    return sorted(problems, key=lambda problem: (problem.line, problem.column))


def _model_problem(models: LanguageModels, listener: Listener) -> Problem | None:
    if listener.block is not agent or not isinstance(listener.config, AgentConfig):
        return None
    problem = models.problem(listener.config.model)
    if problem is None:
        return None
    place = listener.places.get("prompt") or Place(1, 1)
    message = f"the agent {quoted(listener.name)} has no language model: {problem}"
    return Problem(*place, "missing_llm", message, "set it in the server's environment, or name a model here")


def _secrets(organism: Organism) -> Iterator[tuple[str, Place]]:
    """Every secret, and where it stands."""
    if organism.on_failure is not None:
        for name in organism.on_failure.secrets:
            yield name, organism.on_failure.place
    for listener in organism.listeners:
        for member in listener.templates:
            for name in secret_names(listener.given_config[member]):
                yield name, listener.places[member]
