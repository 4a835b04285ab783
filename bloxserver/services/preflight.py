"""Preflight: the requirements of a definition that this installation or the flow's owner does not meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.blocks.http_request import COMPLETE_HOST
from bloxserver.clients.addresses import read_address
from bloxserver.clients.connections import check_addresses
from bloxserver.clients.errors import OutgoingRequestError
from bloxserver.clients.http import PORTS, read_url
from bloxserver.clients.llm import LanguageModels
from bloxserver.clients.mail_headers import read_mailbox
from bloxserver.encryption import get_cipher
from bloxserver.organism.problems import Problem, quoted
from bloxserver.organism.requirements import (
    AddressRequirement,
    MailRequirement,
    ModelRequirement,
    Requirement,
    SecretRequirement,
)
from bloxserver.services.secrets import missing_secrets
from bloxserver.settings import Settings


async def installation_problems(
    session: AsyncSession, settings: Settings, user_id: UUID, requirements: Sequence[Requirement]
) -> list[Problem]:
    """Requirements that the settings do not meet, and secrets that do not exist, in the order of the text."""
    problems = settings_problems(settings, requirements)
    if get_cipher(settings) is None:
        return problems
    secrets = [requirement for requirement in requirements if isinstance(requirement, SecretRequirement)]
    names = frozenset(requirement.name for requirement in secrets)
    missing = await missing_secrets(session, user_id, names) if names else set()
    for requirement in secrets:
        if requirement.name in missing:
            hint = f"store it: PUT /api/v1/secrets/{requirement.name}"
            problems.append(
                _problem(requirement, "missing_secret", f"there is no secret {quoted(requirement.name)}", hint)
            )
    return sorted(problems, key=lambda problem: (problem.line, problem.column))


def settings_problems(settings: Settings, requirements: Sequence[Requirement]) -> list[Problem]:
    """Requirements that the settings do not meet, in the order of the text. Needs no database."""
    models, cipher = LanguageModels(settings), get_cipher(settings)
    found: list[Problem | None] = []
    for requirement in requirements:
        match requirement:
            case ModelRequirement():
                found.append(_model_problem(models, requirement))
            case MailRequirement():
                found.append(_mail_problem(settings, requirement))
            case AddressRequirement():
                found.append(_address_problem(settings, requirement))
            case SecretRequirement() if cipher is None:
                message = f"the secret {quoted(requirement.name)} cannot be used: this server stores no secrets"
                found.append(
                    _problem(requirement, "missing_secret", message, "set API_KEY_ENCRYPTION_KEY on the server")
                )
    problems = [problem for problem in found if problem is not None]
    return sorted(problems, key=lambda problem: (problem.line, problem.column))


def _problem(requirement: Requirement, code: str, message: str, hint: str) -> Problem:
    # A missing failure notification does not change how an execution ends.
    severity: Literal["error", "warning"] = "warning" if requirement.path[0] == "execution" else "error"
    return Problem(*requirement.place, code, message, hint, severity, requirement.path)


def _model_problem(models: LanguageModels, requirement: ModelRequirement) -> Problem | None:
    problem = models.problem(requirement.model)
    if problem is None:
        return None
    message = f"the agent {quoted(requirement.listener)} has no language model: {problem}"
    return _problem(requirement, "missing_llm", message, "set it in the server's environment, or name a model here")


def _mail_problem(settings: Settings, requirement: MailRequirement) -> Problem | None:
    hint = "set it in the server's environment, or name a server and a from in the listener"
    sender = requirement.sender or settings.smtp_from
    missing = [name for name, value in (("SMTP_HOST", settings.smtp_host), ("SMTP_FROM", sender)) if value is None]
    if missing:
        message = f"this server sends no mail: {' and '.join(missing)} must be set"
        return _problem(requirement, "missing_mail", message, hint)
    if requirement.sender is None or settings.smtp_from is None:
        return None
    try:
        given, own = read_mailbox(requirement.sender).domain, read_mailbox(settings.smtp_from).domain
    except ValueError:
        return None  # reported as a separate problem
    if given.lower() == own.lower():
        return None
    message = f"this server sends mail from addresses at {own} only"
    return _problem(requirement, "missing_mail", message, "leave from out, or name a server in the listener")


def _address_problem(settings: Settings, requirement: AddressRequirement) -> Problem | None:
    """The problem of a literal IP address that the guard refuses. Host names are checked when they are resolved."""
    fixed, placeholder, _ = requirement.url.partition("{{")
    if placeholder and not COMPLETE_HOST.match(fixed.lower()):
        return None
    try:
        url = read_url(fixed)
        addresses = [read_address(url.host)]
        port = url.port or {"http": 80, "https": 443}[url.scheme]
        check_addresses(addresses, url.host, port, settings.ssrf_allow_cidrs, PORTS)
    except OutgoingRequestError as error:
        if error.code == "invalid_url":
            return None  # reported as a separate problem
        hint = "use a public address and one of these ports, or have the operator allow it in SSRF_ALLOW_CIDRS"
        return _problem(requirement, "address_refused", f"{error.message}: it would be refused", hint)
    except ValueError:
        return None
    return None
