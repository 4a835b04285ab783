"""The placeholders in a definition: those that cannot be replaced, and the secrets that the others name."""

from __future__ import annotations

from pydantic import JsonValue

from bloxserver.blocks import templates
from bloxserver.organism.needs import SecretNeed
from bloxserver.organism.problems import Path
from bloxserver.organism.sections import Findings
from bloxserver.organism.yaml_source import Place


class Placeholders:
    """Finds the placeholders of a definition, each where it is written."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._last: dict[tuple[str, Path, str], Place] = {}

    def are_valid(self, path: Path, value: JsonValue, roots: frozenset[str]) -> bool:
        """Report every placeholder of the value that cannot be replaced with a scope of these names."""
        found = templates.defects(value, roots)
        if templates.SECRETS not in roots:
            secrets = {defect[:2] for defect in templates.mentions(value, [templates.SECRETS])}
            found = [defect for defect in found if (defect.path, defect.text) not in secrets]
        for defect in found:
            at = (*path, *defect.path)
            where = _where(at)
            place = self._place("valid", at, defect.text)
            self._findings.error(at, "invalid_template", f"{where}: {defect.message}", defect.hint, place=place)
        return not found

    def need_secrets(self, path: Path, value: JsonValue) -> None:
        """Note the secrets that a value names."""
        for inner, text in templates.mentions(value, [templates.SECRETS]):
            at = (*path, *inner)
            name = text.strip("{}").strip().removeprefix(f"{templates.SECRETS}.")
            if templates.SECRET_NAME.fullmatch(name):
                self._findings.needs.append(SecretNeed(self._place("need", at, text), at, name))

    def refuse_secrets(self, path: Path, value: JsonValue, hint: str) -> bool:
        """Report every secret in a value where none may stand; whether there was one."""
        found = templates.mentions(value, [templates.SECRETS])
        for inner, text in found:
            at = (*path, *inner)
            message = f"{_where(at)} may not hold a secret: it could be stored with the answer"
            self._findings.error(at, "secret_not_allowed", message, hint, place=self._place("refuse", at, text))
        return bool(found)

    def warn_of_unreplaced(self, path: Path, value: JsonValue) -> None:
        """Report what looks like a placeholder where none is replaced."""
        for inner, text in templates.mentions(value, templates.ROOTS):
            at = (*path, *inner)
            message = f"placeholders are not replaced in {_where(at)}: it is used as it is written"
            hint = "put the value together before, in a transform or a text.template"
            self._findings.warning(at, "placeholder_not_replaced", message, hint, place=self._place("warn", at, text))

    def _place(self, purpose: str, path: Path, text: str) -> Place:
        """Where the next occurrence of a placeholder is written that was not asked for with the same purpose."""
        place = self._findings.document.place_within(path, text, self._last.get((purpose, path, text)))
        self._last[purpose, path, text] = place
        return place


def _where(path: Path) -> str:
    """A path as a person would name it, from the listener's member on."""
    inner = path[2:] if path[0] == "listeners" else path
    inner = inner[1:] if len(inner) > 1 and inner[0] in ("config", "tool_config") else inner
    return ".".join(str(part) for part in inner)[:200]
