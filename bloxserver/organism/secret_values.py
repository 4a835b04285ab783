"""Values of a definition that are invalid with the stored values of its secrets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import ValidationError

from bloxserver.blocks.templates import insert_secrets
from bloxserver.organism.problems import Problem
from bloxserver.organism.requirements import Requirement, ValidityRequirement
from bloxserver.redaction import redact


def invalid_values(requirements: Iterable[Requirement], secrets: Mapping[str, str]) -> list[Problem]:
    """Return the problems of values with these secrets inserted. No message contains a secret."""
    problems: list[Problem] = []
    for requirement in requirements:
        if isinstance(requirement, ValidityRequirement) and (reason := _reason(requirement, secrets)) is not None:
            message = f"invalid with the stored secrets: {redact(reason, secrets)}"
            hint = "correct the values of the secrets, or this value"
            severity = severity_of(requirement)
            problems.append(
                Problem(*requirement.place, "invalid_secret", message, hint, severity=severity, path=requirement.path)
            )
    return problems


def severity_of(requirement: Requirement) -> Literal["error", "warning"]:
    """Return the severity of a requirement that is not met.

    It is a warning for a failure notification, which does not change how an execution ends.
    """
    return "warning" if requirement.path[0] == "execution" else "error"


def _reason(requirement: ValidityRequirement, secrets: Mapping[str, str]) -> str | None:
    try:
        requirement.validate(insert_secrets(requirement.value, secrets))
    except ValidationError as error:
        reason = error.errors(include_input=False, include_url=False, include_context=False)[0]
        location = ".".join(map(str, reason["loc"]))
        message = reason["msg"].removeprefix("Value error, ")
        return f"{location}: {message}" if location else message
    except ValueError as error:
        return str(error)
    return None
