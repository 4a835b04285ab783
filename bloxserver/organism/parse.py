"""From the text of a definition to an Organism, or to everything that is wrong with it."""

from __future__ import annotations

from bloxserver.blocks import templates
from bloxserver.blocks.registry import BlockRegistry
from bloxserver.clients.http import OutgoingRequestError, read_url
from bloxserver.organism.listeners import read_listeners
from bloxserver.organism.model import ExecutionLimits, FailureNotification, Organism
from bloxserver.organism.problems import OrganismError, Problem, quoted
from bloxserver.organism.sections import MAX_NAME, UNUSED_KEYS, Findings, Section
from bloxserver.organism.yaml_loader import load

MAX_ITERATIONS = 10_000

TOP_KEYS = ("organism", "listeners", "execution")
ORGANISM_KEYS = ("name", "description")
EXECUTION_KEYS = ("timeout_seconds", "max_iterations", "on_failure")
ON_FAILURE_KEYS = ("url", "secret", "email")


def parse(text: str, registry: BlockRegistry) -> Organism:
    """The organism that a definition describes. Raises OrganismError with every error in it."""
    organism, problems = read(text, registry)
    if organism is None:
        raise OrganismError([problem for problem in problems if problem.severity == "error"])
    return organism


def check(text: str, registry: BlockRegistry) -> list[Problem]:
    """Every error and warning of a definition, in the order of its text."""
    try:
        return read(text, registry)[1]
    except OrganismError as error:
        return error.problems


def read(text: str, registry: BlockRegistry) -> tuple[Organism | None, list[Problem]]:
    """The organism, None where there is an error, and all problems in the order of the text.

    Raises OrganismError where the text cannot be read at all.
    """
    findings = Findings(load(text, tolerant=True))
    top = Section(findings.document.value, (), findings)
    top.warn_of_unknown(TOP_KEYS, UNUSED_KEYS)
    name, description = _read_head(top)
    listeners = read_listeners(top, registry)
    execution = top.section("execution")
    limits, on_failure = _read_limits(execution), _read_on_failure(execution)
    problems = sorted(findings.problems, key=lambda problem: (problem.line, problem.column))
    if any(problem.severity == "error" for problem in problems):
        return None, problems
    return Organism(name, listeners, description, limits, on_failure), problems


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
    for key, text in (("url", url), ("secret", secret), ("email", email)):
        _check_template(section, key, text)
    if url is None and email is None:
        section.missing("url", "name a url or an email")
    if url is not None and "{{" not in url:
        try:
            read_url(url)
        except OutgoingRequestError as error:
            section.findings.error(section.path_to("url"), "invalid_config", f"url: {error.message}", "write https://…")
    if email is not None and "{{" not in email and ("@" not in email or not email.isprintable() or " " in email):
        message = f"{quoted(email)} is no e-mail address"
        section.findings.error(section.path_to("email"), "invalid_config", message, "write name@example.com")
    return FailureNotification(url, secret, email, section.findings.document.place_of(section.path))


def _check_template(section: Section, key: str, text: str | None) -> None:
    if text is None or "{{" not in text:
        return
    try:
        templates.check(text, frozenset({"secrets"}))
    except ValueError as error:
        hint = "write {{ secrets.NAME }}"
        section.findings.error(section.path_to(key), "invalid_template", f"{key}: {error}", hint)
