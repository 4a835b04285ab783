"""Preflight: what a definition needs and this installation, or the owner of the flow, does not have."""

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
from bloxserver.organism.needs import AddressNeed, MailNeed, ModelNeed, Need, SecretNeed
from bloxserver.organism.problems import Problem, quoted
from bloxserver.services.secrets import missing_secrets
from bloxserver.settings import Settings


async def installation_problems(
    session: AsyncSession, settings: Settings, user_id: UUID, needs: Sequence[Need]
) -> list[Problem]:
    """What the settings do not provide, and the secrets that the user has not stored, in the order of the text."""
    problems = settings_problems(settings, needs)
    if get_cipher(settings) is None:
        return problems
    secrets = [need for need in needs if isinstance(need, SecretNeed)]
    names = frozenset(need.name for need in secrets)
    missing = await missing_secrets(session, user_id, names) if names else set()
    for need in secrets:
        if need.name in missing:
            hint = f"store it: PUT /api/v1/secrets/{need.name}"
            problems.append(_problem(need, "missing_secret", f"there is no secret {quoted(need.name)}", hint))
    return sorted(problems, key=lambda problem: (problem.line, problem.column))


def settings_problems(settings: Settings, needs: Sequence[Need]) -> list[Problem]:
    """What the settings do not provide, in the order of the text. No database is needed to know it."""
    models, cipher = LanguageModels(settings), get_cipher(settings)
    found: list[Problem | None] = []
    for need in needs:
        match need:
            case ModelNeed():
                found.append(_model_problem(models, need))
            case MailNeed():
                found.append(_mail_problem(settings, need))
            case AddressNeed():
                found.append(_address_problem(settings, need))
            case SecretNeed() if cipher is None:
                message = f"the secret {quoted(need.name)} cannot be used: this server stores no secrets"
                found.append(_problem(need, "missing_secret", message, "set API_KEY_ENCRYPTION_KEY on the server"))
    problems = [problem for problem in found if problem is not None]
    return sorted(problems, key=lambda problem: (problem.line, problem.column))


def _problem(need: Need, code: str, message: str, hint: str) -> Problem:
    # Without a notice an execution ends as it would with one.
    severity: Literal["error", "warning"] = "warning" if need.path[0] == "execution" else "error"
    return Problem(*need.place, code, message, hint, severity, need.path)


def _model_problem(models: LanguageModels, need: ModelNeed) -> Problem | None:
    problem = models.problem(need.model)
    if problem is None:
        return None
    message = f"the agent {quoted(need.listener)} has no language model: {problem}"
    return _problem(need, "missing_llm", message, "set it in the server's environment, or name a model here")


def _mail_problem(settings: Settings, need: MailNeed) -> Problem | None:
    hint = "set it in the server's environment, or name a server and a from in the listener"
    sender = need.sender or settings.smtp_from
    missing = [name for name, value in (("SMTP_HOST", settings.smtp_host), ("SMTP_FROM", sender)) if value is None]
    if missing:
        message = f"this server sends no mail: {' and '.join(missing)} must be set"
        return _problem(need, "missing_mail", message, hint)
    if need.sender is None or settings.smtp_from is None:
        return None
    try:
        given, own = read_mailbox(need.sender).domain, read_mailbox(settings.smtp_from).domain
    except ValueError:
        return None  # reported for itself
    if given.lower() == own.lower():
        return None
    message = f"this server sends mail from addresses at {own} only"
    return _problem(need, "missing_mail", message, "leave from out, or name a server in the listener")


def _address_problem(settings: Settings, need: AddressNeed) -> Problem | None:
    """A host that is written as an address is known to be refused; a name is only known when it is resolved."""
    fixed, placeholder, _ = need.url.partition("{{")
    if placeholder and not COMPLETE_HOST.match(fixed.lower()):
        return None
    try:
        url = read_url(fixed)
        addresses = [read_address(url.host)]
        port = url.port or {"http": 80, "https": 443}[url.scheme]
        check_addresses(addresses, url.host, port, settings.ssrf_allow_cidrs, PORTS)
    except OutgoingRequestError as error:
        if error.code == "invalid_url":
            return None  # reported for itself
        hint = "use a public address and one of these ports, or have the operator allow it in SSRF_ALLOW_CIDRS"
        return _problem(need, "address_refused", f"{error.message}: it would be refused", hint)
    except ValueError:
        return None
    return None
