"""Readers for the parts of a definition. They report each problem with its place and continue."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import islice

from pydantic import JsonValue

from bloxserver.organism.problems import Path, Problem, quoted
from bloxserver.organism.requirements import Requirement
from bloxserver.organism.yaml_loader import Document
from bloxserver.organism.yaml_source import Place

MAX_NAME = 64
MAX_TIMEOUT = 86_400
MAX_DOLLARS = 1_000_000

# The search for similar names is slow for large texts. Only the first problems get a suggestion.
MAX_SUGGESTIONS = 20
MAX_CANDIDATES = 200

# Keys that other servers for this format use.
UNUSED_KEYS = ("max_concurrent_*", "thread_scheduling", "llm", "gateways", "triggers", "broadcast")


class ProblemReport:
    """Collects the problems and requirements of one document, with their places."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems = list(document.problems)
        self.requirements: list[Requirement] = []
        self._suggestions = 0

    @property
    def is_valid(self) -> bool:
        """Whether there are no errors so far."""
        return all(problem.severity != "error" for problem in self.problems)

    def error(
        self, path: Path, code: str, message: str, hint: str, *, at_key: bool = False, place: Place | None = None
    ) -> None:
        """Add an error. `place` is more precise than the place of the path."""
        at = self.document.place_of_key(path) if at_key else self.document.place_of(path)
        if at not in self.document.unreadable:
            self.problems.append(Problem(*(place or at), code, message, hint, path=path))

    def warning(self, path: Path, code: str, message: str, hint: str, *, place: Place | None = None) -> None:
        at = place or self.document.place_of_key(path)
        self.problems.append(Problem(*at, code, message, hint, severity="warning", path=path))

    def suggest(self, name: str, nearest: Callable[[str], str | None], otherwise: str) -> str:
        """Return a hint with the known name that is most similar to an unknown one, or the hint `otherwise`."""
        self._suggestions += 1
        if self._suggestions > MAX_SUGGESTIONS or len(name) > MAX_NAME:
            return otherwise
        known = nearest(name)
        return f"did you mean {quoted(known)}?" if known else otherwise


def nearest_of(candidates: Iterable[str]) -> Callable[[str], str | None]:
    short = [candidate for candidate in islice(candidates, MAX_CANDIDATES) if len(candidate) <= MAX_NAME]
    return lambda name: next(iter(get_close_matches(name, short, n=1)), None)


class Section:
    """A mapping of the definition. Its methods report invalid values and return None, or an empty value, for them.

    Null is the same as no value.
    """

    def __init__(self, values: dict[str, JsonValue], path: Path, report: ProblemReport) -> None:
        self.values = values
        self.path = path
        self.report = report

    def path_to(self, key: str | int) -> Path:
        return (*self.path, key)

    def _wrong_type(self, key: str, wanted: str, hint: str = "") -> None:
        hint = hint or f"write {quoted(key)} as {wanted}"
        self.report.error(self.path_to(key), "wrong_type", f"{quoted(key)} must be {wanted}", hint)

    def missing(self, key: str, hint: str = "") -> None:
        self.report.error(self.path_to(key), "missing_field", f"{quoted(key)} is missing", hint or f"add {key}: …")

    def out_of_range(self, key: str, message: str) -> None:
        hint = "choose a value within these limits, or remove the key to use the default"
        self.report.error(self.path_to(key), "out_of_range", message, hint)

    def text(self, key: str, *, required: bool = False) -> str | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            self._wrong_type(key, "text", "write it in quotes" if isinstance(value, int | float) else "")
            return None
        if required and not (value and value.strip()):
            self.missing(key)
            return None
        return value

    def text_or_empty(self, key: str) -> str:
        """Return the text, or an empty text for any other value, without reporting a problem."""
        value = self.values.get(key)
        return value if isinstance(value, str) else ""

    def flag(self, key: str) -> bool:
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            self._wrong_type(key, "true or false")
        return value is True

    def seconds(self, key: str, maximum: int = MAX_TIMEOUT) -> float | None:
        """Return a number of seconds, more than 0 and at most `maximum`."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._wrong_type(key, "a number of seconds")
            return None
        if not 0 < value <= maximum:
            self.out_of_range(key, f"{quoted(key)} must be more than 0 and at most {maximum}")
            return None
        return value

    def dollars(self, key: str) -> float | None:
        """Return an amount of US dollars, more than 0 and at most MAX_DOLLARS."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._wrong_type(key, "a number of US dollars")
            return None
        if not 0 < value <= MAX_DOLLARS:
            self.out_of_range(key, f"{quoted(key)} must be more than 0 and at most {MAX_DOLLARS}")
            return None
        return value

    def count(self, key: str, minimum: int, maximum: int) -> int | None:
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            self._wrong_type(key, "a whole number")
            return None
        if not minimum <= value <= maximum:
            self.out_of_range(key, f"{quoted(key)} must be from {minimum} to {maximum}")
            return None
        return value

    def items(self, key: str, hint: str = "") -> list[JsonValue]:
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            self._wrong_type(key, "a list", hint)
            return []
        return value

    def section(self, key: str) -> Section | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self._wrong_type(key, "a mapping")
            return None
        return Section(value, self.path_to(key), self.report)

    def report_unknown_keys(self, known: Sequence[str], unused: Sequence[str]) -> None:
        for key in self.values:
            if key in known:
                continue
            if any(fnmatchcase(key, pattern) for pattern in unused):
                hint = "remove it, or keep it for other servers that use it"
                self.report.warning(self.path_to(key), "unused_key", f"{quoted(key)} has no effect here", hint)
            else:
                hint = self.report.suggest(key, nearest_of(known), f"the known keys are {', '.join(known)}")
                self.report.warning(self.path_to(key), "unknown_key", f"the key {quoted(key)} is unknown", hint)
