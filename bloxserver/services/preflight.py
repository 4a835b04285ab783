"""Preflight: the requirements of a definition that this installation or the flow's owner does not meet."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.blocks.http_request import COMPLETE_HOST
from bloxserver.blocks.templates import insert_secrets
from bloxserver.clients.addresses import read_address
from bloxserver.clients.connections import check_addresses
from bloxserver.clients.errors import OutgoingRequestError
from bloxserver.clients.http import PORTS, read_url
from bloxserver.clients.mail_headers import read_mailbox, sender_problem
from bloxserver.encryption import get_cipher
from bloxserver.event_loop import in_parts
from bloxserver.model_catalogue import Catalogue, catalogue_of
from bloxserver.model_prices import cost_of
from bloxserver.organism.problems import Problem, quoted
from bloxserver.organism.requirements import (
    AddressRequirement,
    FlowRequirement,
    MailRequirement,
    ModelRequirement,
    PriceRequirement,
    Requirement,
    SecretRequirement,
    SigningKeyRequirement,
)
from bloxserver.organism.secret_values import severity_of
from bloxserver.queries.flows import find_flows
from bloxserver.queries.llm_keys import read_usable_kinds
from bloxserver.redaction import redact
from bloxserver.services.secrets import SecretValues, read_values
from bloxserver.settings import Settings

PART_REQUIREMENTS = 100
"""About a millisecond to check."""


class InstallationCheck(NamedTuple):
    """The requirements that are not met, in the order of the text, and the values of the secrets in the definition."""

    problems: list[Problem]
    secrets: dict[str, str]


async def check_installation(
    session: AsyncSession,
    settings: Settings,
    user_id: UUID,
    requirements: Sequence[Requirement],
    flow_id: UUID | None = None,
) -> InstallationCheck:
    """Check the requirements against the settings, and the secrets and flows of the owner.

    `flow_id` is the flow of the definition; None if it has none.
    """
    cipher = get_cipher(settings)
    names = frozenset(requirement.name for requirement in requirements if isinstance(requirement, SecretRequirement))
    secrets = await read_values(session, cipher, user_id, names) if cipher and names else SecretValues({}, set(), set())
    has_agents = any(isinstance(requirement, ModelRequirement) for requirement in requirements)
    own_kinds = await read_usable_kinds(session, user_id) if cipher and has_agents else frozenset[str]()
    problems: list[Problem] = []
    async for part in in_parts(requirements, PART_REQUIREMENTS):
        inserted = [_with_secrets(requirement, secrets.values) for requirement in part]
        found = settings_problems(settings, inserted, own_kinds)
        problems += [_redacted(problem, secrets.values) for problem in found]
        problems += _secret_problems(secrets, part)
    problems += await _flow_problems(session, user_id, requirements, flow_id)
    problems.sort(key=lambda problem: (problem.line, problem.column))
    return InstallationCheck(problems, secrets.values)


def settings_problems(
    settings: Settings, requirements: Sequence[Requirement], own_kinds: Collection[str] = ()
) -> list[Problem]:
    """Requirements that the settings do not meet, in the order of the text. Needs no database.

    `own_kinds` are the kinds of providers for which the user has keys.
    """
    models, cipher = catalogue_of(settings), get_cipher(settings)
    found: list[Problem | None] = []
    for requirement in requirements:
        match requirement:
            case ModelRequirement():
                found.append(_model_problem(models, requirement, own_kinds))
            case PriceRequirement():
                found.append(_price_problem(models, requirement))
            case MailRequirement():
                found.append(_mail_problem(settings, requirement))
            case AddressRequirement():
                found.append(_address_problem(settings, requirement))
            case SigningKeyRequirement() if cipher is None:
                message = f"{quoted(requirement.listener)} has no URL: this server has no key that signs it"
                found.append(_problem(requirement, "missing_key", message, "set API_KEY_ENCRYPTION_KEY on the server"))
            case SecretRequirement() if cipher is None:
                message = f"the secret {quoted(requirement.name)} cannot be used: this server stores no secrets"
                found.append(
                    _problem(requirement, "missing_secret", message, "set API_KEY_ENCRYPTION_KEY on the server")
                )
    problems = [problem for problem in found if problem is not None]
    return sorted(problems, key=lambda problem: (problem.line, problem.column))


def _with_secrets(requirement: Requirement, secrets: Mapping[str, str]) -> Requirement:
    """The requirement with the values of these secrets inserted."""
    match requirement:
        case AddressRequirement(url=url):
            return replace(requirement, url=str(insert_secrets(url, secrets)))
        case MailRequirement(sender=str(sender)):
            return replace(requirement, sender=str(insert_secrets(sender, secrets)))
    return requirement


def _redacted(problem: Problem, secrets: Mapping[str, str]) -> Problem:
    return replace(problem, message=str(redact(problem.message, secrets)))


def _secret_problems(secrets: SecretValues, requirements: Sequence[Requirement]) -> list[Problem]:
    problems: list[Problem] = []
    for requirement in requirements:
        if not isinstance(requirement, SecretRequirement):
            continue
        name = requirement.name
        if name in secrets.missing:
            hint = f"store it: PUT /api/v1/secrets/{name}"
            problems.append(_problem(requirement, "missing_secret", f"there is no secret {quoted(name)}", hint))
        elif name in secrets.unreadable:
            message = f"no key in API_KEY_ENCRYPTION_KEY decrypts the secret {quoted(name)}"
            hint = f"store it again: PUT /api/v1/secrets/{name}, or have the operator restore the key"
            problems.append(_problem(requirement, "unreadable_secret", message, hint))
    return problems


async def _flow_problems(
    session: AsyncSession, user_id: UUID, requirements: Sequence[Requirement], flow_id: UUID | None
) -> list[Problem]:
    """Warnings about called flows: they may be created or renamed before the call."""
    called = [requirement for requirement in requirements if isinstance(requirement, FlowRequirement)]
    flows = await find_flows(session, user_id, frozenset(requirement.flow for requirement in called)) if called else {}
    problems: list[Problem] = []
    for requirement in called:
        found = flows.get(requirement.flow, [])
        if len(found) != 1:
            message = f"you have {'several flows' if found else 'no flow'} with the name {quoted(requirement.flow)}"
            if not found:
                message = f"you have no flow with the id or name {quoted(requirement.flow)}"
            hint = "use the id of the flow" if found else "create the flow before this one runs"
            problems.append(_warning(requirement, "unknown_flow", f"{message}; the call fails", hint))
        elif found == [flow_id] and not requirement.has_target:
            message = "this flow calls itself with a target that it does not have"
            problems.append(_warning(requirement, "unknown_target", message, "name one of its listeners as the target"))
        elif found == [flow_id] and requirement.repeats:
            message = "this flow calls itself without a condition; the calls fail at the maximum depth"
            hint = "put a condition before the call, or call another flow"
            problems.append(_warning(requirement, "endless_call", message, hint))
    return problems


def _warning(requirement: Requirement, code: str, message: str, hint: str) -> Problem:
    return Problem(*requirement.place, code, message, hint, severity="warning", path=requirement.path)


def _problem(requirement: Requirement, code: str, message: str, hint: str) -> Problem:
    return Problem(*requirement.place, code, message, hint, severity_of(requirement), requirement.path)


def _model_problem(models: Catalogue, requirement: ModelRequirement, own_kinds: Collection[str]) -> Problem | None:
    problem = models.problem(requirement.model)
    if problem is None or models.routes_with_keys(requirement.model, own_kinds):
        return None
    message = f"the agent {quoted(requirement.listener)} has no language model: {problem}"
    return _problem(requirement, "missing_llm", message, "set it in the server's environment, or name a model here")


def _price_problem(models: Catalogue, requirement: PriceRequirement) -> Problem | None:
    routes = [] if models.problem(requirement.model) else models.routes(requirement.model)
    if all(cost_of(route.provider, route.model, 1, 1) is not None for route in routes):
        return None
    message = f"the agent {quoted(requirement.listener)} may use a model whose price is unknown; it is counted as free"
    return _warning(requirement, "unknown_price", message, "have the operator set prices in LLM_PROVIDERS")


def _mail_problem(settings: Settings, requirement: MailRequirement) -> Problem | None:
    hint = "set it in the server's environment, or set server and from in the listener's config"
    required = (("SMTP_HOST", settings.smtp_host), ("SMTP_FROM", settings.smtp_from))
    missing = [name for name, value in required if value is None]
    if missing:
        message = f"this server sends no mail: {' and '.join(missing)} must be set"
        return _problem(requirement, "missing_mail", message, hint)
    if requirement.sender is None or settings.smtp_from is None:
        return None
    try:
        sender, own = read_mailbox(requirement.sender), read_mailbox(settings.smtp_from)
    except ValueError:
        return None  # reported as a separate problem
    problem = sender_problem(sender, own, settings.smtp_senders)
    hint = "remove from, or set server in the listener's config"
    return _problem(requirement, "missing_mail", problem, hint) if problem else None


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
        hint = "use a public address and an allowed port, or ask the operator to allow the address in SSRF_ALLOW_CIDRS"
        return _problem(requirement, "address_refused", f"{error.message}: it would be refused", hint)
    except ValueError:
        return None
    return None
