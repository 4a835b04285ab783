"""Validation of the placeholders in a definition, and the secrets that they name."""

from __future__ import annotations

from pydantic import JsonValue

from bloxserver.blocks import templates
from bloxserver.blocks.names import ROOTS, SECRET_NAME, SECRETS
from bloxserver.organism.problems import Path
from bloxserver.organism.requirements import SecretRequirement
from bloxserver.organism.sections import ProblemReport
from bloxserver.organism.yaml_source import Place


class Placeholders:
    """Checks the placeholders of a definition and locates each of them in the text."""

    def __init__(self, report: ProblemReport) -> None:
        self._report = report
        self._last: dict[tuple[str, Path, str], Place] = {}

    def are_valid(self, path: Path, value: JsonValue, roots: frozenset[str]) -> bool:
        """Report every placeholder that is invalid for a scope with these names. Returns True if there is none.

        A placeholder in a key is only a warning: the key is used unchanged.
        """
        found = templates.problems(value, roots)
        if SECRETS not in roots:
            secrets = {problem[:2] for problem in templates.mentions(value, [SECRETS])}
            found = [problem for problem in found if (problem.path, problem.text) not in secrets]
        for problem in found:
            at = (*path, *problem.path)
            where = _where(at)
            place = self._place("valid", at, problem.text)
            message = f"{where}: {problem.message}"
            if problem.is_in_key:
                self._report.warning(at, "placeholder_not_replaced", message, problem.hint, place=place)
            else:
                self._report.error(at, "invalid_template", message, problem.hint, place=place)
        return all(problem.is_in_key for problem in found)

    def collect_secrets(self, path: Path, value: JsonValue) -> None:
        """Add a requirement for each secret that a value names."""
        for inner, text in templates.mentions(value, [SECRETS]):
            at = (*path, *inner)
            name = text.strip("{}").strip().removeprefix(f"{SECRETS}.")
            if SECRET_NAME.fullmatch(name):
                self._report.requirements.append(SecretRequirement(self._place("need", at, text), at, name))

    def reject_secrets(self, path: Path, value: JsonValue, hint: str) -> bool:
        """Report every secret in a value where none is allowed. Returns whether there is one."""
        found = templates.mentions(value, [SECRETS])
        for inner, text in found:
            at = (*path, *inner)
            message = f"{_where(at)} must not contain a secret, because it could be stored with the answer"
            self._report.error(at, "secret_not_allowed", message, hint, place=self._place("refuse", at, text))
        return bool(found)

    def report_unreplaced(self, path: Path, value: JsonValue) -> None:
        """Warn about placeholders in a value in which placeholders are not replaced."""
        for inner, text in templates.mentions(value, ROOTS):
            at = (*path, *inner)
            message = f"placeholders are not replaced in {_where(at)}; the text is used unchanged"
            hint = "compute the value in a transform or a text.template before this listener"
            self._report.warning(at, "placeholder_not_replaced", message, hint, place=self._place("warn", at, text))

    def _place(self, purpose: str, path: Path, text: str) -> Place:
        """Return the place of the next occurrence of a placeholder, counted separately for each purpose."""
        place = self._report.document.place_within(path, text, self._last.get((purpose, path, text)))
        self._last[purpose, path, text] = place
        return place


def _where(path: Path) -> str:
    """Return a path for a message, relative to the listener or its config."""
    inner = path[2:] if path[0] == "listeners" else path
    inner = inner[1:] if len(inner) > 1 and inner[0] in ("config", "tool_config") else inner
    return ".".join(str(part) for part in inner)[:200]
