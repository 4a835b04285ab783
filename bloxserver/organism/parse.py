"""Parse the text of a definition into an Organism, or into its problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from bloxserver.blocks.agent import AgentConfig
from bloxserver.blocks.checking import checking, is_checking
from bloxserver.blocks.http_request import check_url
from bloxserver.blocks.names import SECRETS
from bloxserver.blocks.registry import BlockRegistry
from bloxserver.clients.mail_headers import read_mailbox
from bloxserver.organism.called_flows import require_called_flows
from bloxserver.organism.expression_checks import check_expressions
from bloxserver.organism.joins import check_joins
from bloxserver.organism.limits import check_limits
from bloxserver.organism.listeners import read_listeners
from bloxserver.organism.model import ExecutionLimits, FailureNotification, Organism
from bloxserver.organism.placeholders import Placeholders
from bloxserver.organism.problems import OrganismError, Problem, quoted
from bloxserver.organism.requirements import (
    AddressRequirement,
    MailRequirement,
    PriceRequirement,
    Requirement,
    ValidityRequirement,
)
from bloxserver.organism.sections import MAX_NAME, UNUSED_KEYS, ProblemReport, Section
from bloxserver.organism.yaml_loader import load
from bloxserver.signing_key_format import read_secret

MAX_ITERATIONS = 10_000
MAX_TOKENS = 1_000_000_000

TOP_KEYS = ("organism", "listeners", "execution")
ORGANISM_KEYS = ("name", "description")
EXECUTION_KEYS = ("timeout_seconds", "max_iterations", "max_tokens", "max_cost_usd", "daily_max_cost_usd", "on_failure")
LITERAL_HINTS = {
    "url": "write a URL like https://example.com",
    "secret": "write whsec_ followed by 24 to 64 bytes in base64",
    "email": "write an address like name@example.com",
}
ON_FAILURE_KEYS = ("url", "secret", "email")


class Reading(NamedTuple):
    """The result of reading a definition."""

    organism: Organism | None
    """Null if there is an error."""
    problems: list[Problem]
    """All errors and warnings, in the order of the text."""
    requirements: tuple[Requirement, ...]
    """The requirements on the installation, also if there are errors."""


def parse(text: str, registry: BlockRegistry) -> Organism:
    """Return the organism that a definition describes, for an execution: the definition has been checked before.

    Raises OrganismError with all errors except for those that are found only by a complete validation of configs.
    """
    organism, problems, _ = _read(text, registry)
    if organism is None:
        raise OrganismError([problem for problem in problems if problem.severity == "error"])
    return organism


def check(text: str, registry: BlockRegistry) -> list[Problem]:
    """Return all errors and warnings of a definition, in the order of its text."""
    try:
        return read(text, registry).problems
    except OrganismError as error:
        return error.problems


def read(text: str, registry: BlockRegistry) -> Reading:
    """Return the organism and all its problems. Raises OrganismError if the text is not YAML or exceeds a limit."""
    with checking():
        return _read(text, registry)


def _read(text: str, registry: BlockRegistry) -> Reading:
    report = ProblemReport(load(text, tolerant=True))
    top = Section(report.document.value, (), report)
    top.report_unknown_keys(TOP_KEYS, UNUSED_KEYS)
    name, description = _read_head(top)
    listeners = read_listeners(top, registry)
    execution = top.section("execution")
    limits, on_failure = _read_limits(execution), _read_on_failure(execution)
    organism = Organism(name, listeners, description, limits, on_failure)
    if report.is_valid:
        check_joins(organism, report)
    if report.is_valid:
        check_limits(organism, report)
        if is_checking():
            check_expressions(organism, report)
        require_called_flows(organism, report)
        _require_prices(organism, report)
    requirements = tuple(report.requirements)
    organism = replace(organism, requirements=requirements)
    problems = sorted(report.problems, key=lambda problem: (problem.line, problem.column))
    return Reading(organism if report.is_valid else None, problems, requirements)


def _read_head(top: Section) -> tuple[str, str | None]:
    """Return the organism's name and description."""
    head = top.section("organism")
    if head is None:
        if top.values.get("organism") is None:
            top.missing("organism", 'begin the definition with "organism:" and a name')
        return "", None
    head.report_unknown_keys(ORGANISM_KEYS, (*UNUSED_KEYS, "port"))
    name = head.text("name", required=True) or ""
    if len(name) > MAX_NAME or not name.isprintable():
        message = f"{quoted(name)} is not a valid name for an organism"
        hint = f"use one line of at most {MAX_NAME} characters"
        head.report.error(head.path_to("name"), "invalid_name", message, hint)
    return name, head.text("description")


def _read_limits(execution: Section | None) -> ExecutionLimits:
    default = ExecutionLimits()
    if execution is None:
        return default
    execution.report_unknown_keys(EXECUTION_KEYS, (*UNUSED_KEYS, "log_*"))
    return ExecutionLimits(
        timeout_seconds=execution.seconds("timeout_seconds") or default.timeout_seconds,
        max_iterations=execution.count("max_iterations", 1, MAX_ITERATIONS) or default.max_iterations,
        max_tokens=execution.count("max_tokens", 1, MAX_TOKENS),
        max_cost_usd=execution.dollars("max_cost_usd"),
        daily_max_cost_usd=execution.dollars("daily_max_cost_usd"),
    )


def _require_prices(organism: Organism, report: ProblemReport) -> None:
    """A budget in US dollars counts only calls whose price is known."""
    limits = organism.execution
    if limits.max_cost_usd is None and limits.daily_max_cost_usd is None:
        return
    path = ("execution", "daily_max_cost_usd" if limits.max_cost_usd is None else "max_cost_usd")
    for listener in organism.listeners:
        if isinstance(listener.config, AgentConfig):
            place = report.document.place_of(path)
            report.requirements.append(PriceRequirement(place, path, listener.name, listener.config.model))


def _read_on_failure(execution: Section | None) -> FailureNotification | None:
    section = execution.section("on_failure") if execution else None
    if section is None:
        return None
    section.report_unknown_keys(ON_FAILURE_KEYS, ())
    url, secret, email = section.text("url"), section.text("secret"), section.text("email")
    if section.values.get("url") is None and section.values.get("email") is None:
        section.missing("url", "add a url or an email")
    placeholders = Placeholders(section.report)
    for key, text in (("url", url), ("secret", secret), ("email", email)):
        if text is not None:
            placeholders.collect_secrets(section.path_to(key), text)
            if placeholders.are_valid(section.path_to(key), text, frozenset({SECRETS})):
                _check_literal(section, key, text)
    if secret is not None and url is None:
        message, hint = '"secret" has no effect without a url', "remove it, or add a url"
        section.report.warning(section.path_to("secret"), "unused_key", message, hint)
    return FailureNotification(url, secret, email)


def _check_literal(section: Section, key: str, text: str) -> None:
    """Report an invalid member of on_failure, and add its requirements."""
    path, report = section.path_to(key), section.report
    place = report.document.place_of(path)
    if key == "email":
        report.requirements.append(MailRequirement(place, path, None))
    try:
        LITERALS[key](text)
    except ValueError as error:
        report.error(path, "invalid_config", f"{key}: {error}", LITERAL_HINTS[key])
        return
    if key == "url":
        report.requirements.append(AddressRequirement(place, path, text))
    report.requirements.append(ValidityRequirement(place, path, text, LITERALS[key]))


def _unless_template(validate: Callable[[str], object]) -> Callable[[str], object]:
    """Return a validator for texts without placeholders. It accepts every text with placeholders."""
    return lambda text: None if "{{" in text else validate(text)


LITERALS = {"url": check_url, "secret": _unless_template(read_secret), "email": _unless_template(read_mailbox)}
"""Validators of the members of on_failure. They raise `ValueError`."""
