"""From the text of a definition to an Organism, or to everything that is wrong with it."""

from __future__ import annotations

from typing import NamedTuple

from bloxserver.blocks import templates
from bloxserver.blocks.http_request import check_url
from bloxserver.blocks.registry import BlockRegistry
from bloxserver.clients.mail_headers import read_mailbox
from bloxserver.clients.signatures import read_secret
from bloxserver.organism.limits import warn_of_limits
from bloxserver.organism.listeners import read_listeners
from bloxserver.organism.model import ExecutionLimits, FailureNotification, Organism
from bloxserver.organism.needs import AddressNeed, MailNeed, Need
from bloxserver.organism.placeholders import Placeholders
from bloxserver.organism.problems import OrganismError, Problem, quoted
from bloxserver.organism.sections import MAX_NAME, UNUSED_KEYS, Findings, Section
from bloxserver.organism.yaml_loader import load

MAX_ITERATIONS = 10_000

TOP_KEYS = ("organism", "listeners", "execution")
ORGANISM_KEYS = ("name", "description")
EXECUTION_KEYS = ("timeout_seconds", "max_iterations", "on_failure")
LITERAL_HINTS = {
    "url": "write https://…",
    "secret": "write whsec_ and the base64 of 24 to 64 bytes",
    "email": "write name@example.com",
}
ON_FAILURE_KEYS = ("url", "secret", "email")


class Reading(NamedTuple):
    """What became of a definition's text."""

    organism: Organism | None
    """Null where there is an error."""
    problems: list[Problem]
    """All of them, in the order of the text."""
    needs: tuple[Need, ...]
    """What it needs of the installation, also where there are errors."""


def parse(text: str, registry: BlockRegistry) -> Organism:
    """The organism that a definition describes. Raises OrganismError with every error in it."""
    organism, problems, _ = read(text, registry)
    if organism is None:
        raise OrganismError([problem for problem in problems if problem.severity == "error"])
    return organism


def check(text: str, registry: BlockRegistry) -> list[Problem]:
    """Every error and warning of a definition, in the order of its text."""
    try:
        return read(text, registry).problems
    except OrganismError as error:
        return error.problems


def read(text: str, registry: BlockRegistry) -> Reading:
    """The organism, and all that is wrong with it. Raises OrganismError where the text cannot be read at all."""
    findings = Findings(load(text, tolerant=True))
    top = Section(findings.document.value, (), findings)
    top.warn_of_unknown(TOP_KEYS, UNUSED_KEYS)
    name, description = _read_head(top)
    listeners = read_listeners(top, registry)
    execution = top.section("execution")
    limits, on_failure = _read_limits(execution), _read_on_failure(execution)
    needs = tuple(findings.needs)
    organism = Organism(name, listeners, description, limits, on_failure, needs)
    valid = all(problem.severity != "error" for problem in findings.problems)
    if valid:
        warn_of_limits(organism, findings)
    problems = sorted(findings.problems, key=lambda problem: (problem.line, problem.column))
    return Reading(organism if valid else None, problems, needs)


def _read_head(top: Section) -> tuple[str, str | None]:
    """The organism's name and description."""
    head = top.section("organism")
    if head is None:
        if top.values.get("organism") is None:
            top.missing("organism", 'begin with "organism:" and its name')
        return "", None
    head.warn_of_unknown(ORGANISM_KEYS, (*UNUSED_KEYS, "port"))
    name = head.text("name", required=True) or ""
    if len(name) > MAX_NAME or not name.isprintable():
        message = f"{quoted(name)} cannot be an organism's name"
        hint = f"one line, at most {MAX_NAME} characters"
        head.findings.error(head.path_to("name"), "invalid_name", message, hint)
    return name, head.text("description")


def _read_limits(execution: Section | None) -> ExecutionLimits:
    default = ExecutionLimits()
    if execution is None:
        return default
    execution.warn_of_unknown(EXECUTION_KEYS, (*UNUSED_KEYS, "log_*"))
    return ExecutionLimits(
        timeout_seconds=execution.seconds("timeout_seconds") or default.timeout_seconds,
        max_iterations=execution.count("max_iterations", 1, MAX_ITERATIONS) or default.max_iterations,
    )


def _read_on_failure(execution: Section | None) -> FailureNotification | None:
    section = execution.section("on_failure") if execution else None
    if section is None:
        return None
    section.warn_of_unknown(ON_FAILURE_KEYS, ())
    url, secret, email = section.text("url"), section.text("secret"), section.text("email")
    if section.values.get("url") is None and section.values.get("email") is None:
        section.missing("url", "name a url or an email")
    placeholders = Placeholders(section.findings)
    for key, text in (("url", url), ("secret", secret), ("email", email)):
        if text is not None:
            placeholders.need_secrets(section.path_to(key), text)
            if placeholders.are_valid(section.path_to(key), text, frozenset({templates.SECRETS})):
                _check_literal(section, key, text)
    if secret is not None and url is None:
        message, hint = '"secret" has no effect without a url', "remove it, or add the url that is to be notified"
        section.findings.warning(section.path_to("secret"), "unused_key", message, hint)
    return FailureNotification(url, secret, email)


def _check_literal(section: Section, key: str, text: str) -> None:
    """Report a member of on_failure that cannot be used, and note what it needs, where no placeholder is in it."""
    path, findings = section.path_to(key), section.findings
    place = findings.document.place_of(path)
    if key == "email":
        findings.needs.append(MailNeed(place, path, None))
    try:
        if key == "url":
            check_url(text)
            findings.needs.append(AddressNeed(place, path, text))
        elif "{{" not in text:
            read = read_mailbox if key == "email" else read_secret
            read(text)
    except ValueError as error:
        findings.error(path, "invalid_config", f"{key}: {error}", LITERAL_HINTS[key])
