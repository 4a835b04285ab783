"""From the text of a definition to an Organism, or to everything that is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import islice

from pydantic import JsonValue, ValidationError

from bloxserver.blocks.base import AnyBlock, BlockConfig
from bloxserver.blocks.registry import BlockRegistry
from bloxserver.organism.model import ExecutionLimits, Listener, Organism
from bloxserver.organism.problems import OrganismError, Path, Problem, quoted
from bloxserver.organism.yaml_loader import Document, Place, load

LONGEST_TIMEOUT = 86_400
MOST_ITERATIONS = 10_000
LONGEST_NAME = 64
LISTENER_NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{LONGEST_NAME}}}")

# Looking for what was meant takes time that grows with the text: only the first mistakes get it.
MOST_SUGGESTIONS = 20
MOST_CANDIDATES = 200

TOP_KEYS = ("organism", "listeners", "execution")
ORGANISM_KEYS = ("name", "description")
EXECUTION_KEYS = ("timeout_seconds", "max_iterations")
MODEL_KEYS = ("prompt", "model", "temperature", "max_tokens")
LISTENER_KEYS = (
    "name",
    "handler",
    "payload_class",
    "description",
    "config",
    "tool_config",
    "peers",
    "timeout_seconds",
    "retries",
    "agent",
    *MODEL_KEYS,
)
# Other servers of this format use them.
UNUSED_KEYS = ("max_concurrent_*", "thread_scheduling", "llm", "gateways", "triggers", "broadcast")


def parse(text: str, registry: BlockRegistry) -> Organism:
    """The organism that a definition describes. Raises OrganismError with every error in it."""
    organism, problems = _read(text, registry)
    if organism is None:
        raise OrganismError([problem for problem in problems if problem.severity == "error"])
    return organism


def check(text: str, registry: BlockRegistry) -> list[Problem]:
    """Every error and warning of a definition, in the order of its text."""
    try:
        return _read(text, registry)[1]
    except OrganismError as error:
        return error.problems


def _read(text: str, registry: BlockRegistry) -> tuple[Organism | None, list[Problem]]:
    """The organism, None where there is an error. Raises OrganismError where the text cannot be read at all."""
    findings = Findings(load(text))
    top = Section(findings.document.value, (), findings)
    top.warn_of_unknown(TOP_KEYS, UNUSED_KEYS)
    name, description = _read_head(top)
    listeners = _read_listeners(top, registry)
    execution = _read_execution(top)
    problems = sorted(findings.problems, key=lambda problem: (problem.line, problem.column))
    if any(problem.severity == "error" for problem in problems):
        return None, problems
    return Organism(name, listeners, description, execution), problems


class Findings:
    """The problems of one document, each put where it is written."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems = list(document.problems)
        self._unreadable = {Place(problem.line, problem.column) for problem in document.problems}
        self._suggestions = 0

    def error(self, path: Path, code: str, message: str, hint: str = "", *, at_key: bool = False) -> None:
        place = self.document.place_of_key(path) if at_key else self.document.place_of(path)
        if place not in self._unreadable:
            self.problems.append(Problem(*place, code, message, hint, path=path))

    def warning(self, path: Path, code: str, message: str, hint: str = "") -> None:
        place = self.document.place_of_key(path)
        self.problems.append(Problem(*place, code, message, hint, severity="warning", path=path))

    def suggest(self, name: str, nearest: Callable[[str], str | None]) -> str:
        """A hint at what an unknown name was probably meant to be, or nothing."""
        self._suggestions += 1
        if self._suggestions > MOST_SUGGESTIONS or len(name) > LONGEST_NAME:
            return ""
        known = nearest(name)
        return f"did you mean {quoted(known)}?" if known else ""


def _nearest_of(candidates: Iterable[str]) -> Callable[[str], str | None]:
    short = [candidate for candidate in islice(candidates, MOST_CANDIDATES) if len(candidate) <= LONGEST_NAME]
    return lambda name: next(iter(get_close_matches(name, short, n=1)), None)


class Section:
    """A mapping of the definition. Its readers report what is wrong and go on with what stands for nothing.

    A null counts as absent.
    """

    def __init__(self, values: dict[str, JsonValue], path: Path, findings: Findings) -> None:
        self.values = values
        self.path = path
        self.findings = findings

    def path_to(self, key: str | int) -> Path:
        return (*self.path, key)

    def _wrong_type(self, key: str, wanted: str, hint: str = "") -> None:
        self.findings.error(self.path_to(key), "wrong_type", f"{quoted(key)} must be {wanted}", hint)

    def missing(self, key: str, hint: str = "") -> None:
        self.findings.error(self.path_to(key), "missing_field", f"{quoted(key)} is missing", hint)

    def text(self, key: str, *, required: bool = False) -> str | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            self._wrong_type(key, "text", "write it in quotes" if isinstance(value, int | float) else "")
            return None
        if required and not (value and value.strip()):
            self.missing(key)
            return None
        return value

    def flag(self, key: str) -> bool:
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            self._wrong_type(key, "true or false")
        return value is True

    def seconds(self, key: str) -> float | None:
        """More than 0, at most a day."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._wrong_type(key, "a number of seconds")
            return None
        if not 0 < value <= LONGEST_TIMEOUT:
            message = f"{quoted(key)} must be more than 0 and at most {LONGEST_TIMEOUT}"
            self.findings.error(self.path_to(key), "out_of_range", message)
            return None
        return value

    def count(self, key: str, least: int, most: int) -> int | None:
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            self._wrong_type(key, "a whole number")
            return None
        if not least <= value <= most:
            message = f"{quoted(key)} must be from {least} to {most}"
            self.findings.error(self.path_to(key), "out_of_range", message)
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
        return Section(value, self.path_to(key), self.findings)

    def warn_of_unknown(self, known: Sequence[str], unused: Sequence[str]) -> None:
        for key in self.values:
            if key in known:
                continue
            if any(fnmatchcase(key, pattern) for pattern in unused):
                self.findings.warning(self.path_to(key), "unused_key", f"{quoted(key)} has no effect here")
            else:
                hint = self.findings.suggest(key, _nearest_of(known))
                self.findings.warning(self.path_to(key), "unknown_key", f"{quoted(key)} is not known", hint)


def _read_head(top: Section) -> tuple[str, str | None]:
    """The organism's name and description."""
    head = top.section("organism")
    if head is None:
        if top.values.get("organism") is None:
            top.missing("organism")
        return "", None
    head.warn_of_unknown(ORGANISM_KEYS, (*UNUSED_KEYS, "port"))
    name = head.text("name", required=True) or ""
    if len(name) > LONGEST_NAME or not name.isprintable():
        message = f"{quoted(name)} cannot be an organism's name"
        hint = f"one line, at most {LONGEST_NAME} characters"
        head.findings.error(head.path_to("name"), "invalid_name", message, hint)
    return name, head.text("description")


def _read_execution(top: Section) -> ExecutionLimits:
    execution = top.section("execution")
    default = ExecutionLimits()
    if execution is None:
        return default
    execution.warn_of_unknown(EXECUTION_KEYS, (*UNUSED_KEYS, "log_*"))
    return ExecutionLimits(
        timeout_seconds=execution.seconds("timeout_seconds") or default.timeout_seconds,
        max_iterations=execution.count("max_iterations", 1, MOST_ITERATIONS) or default.max_iterations,
    )


def _read_listeners(top: Section, registry: BlockRegistry) -> tuple[Listener, ...]:
    items = top.items("listeners", 'begin each listener with "- name:"')
    if top.values.get("listeners") in (None, []):
        top.missing("listeners", "an organism needs one listener or more")
    sections: list[Section] = []
    for index, item in enumerate(items):
        path = ("listeners", index)
        if isinstance(item, dict):
            sections.append(Section(item, path, top.findings))
        else:
            top.findings.error(path, "wrong_type", "a listener must be a mapping", 'begin it with "- name:"')
    names = _read_names(sections)
    listeners = [_read_listener(section, names, registry) for section in sections]
    return tuple(listener for listener in listeners if listener is not None)


def _read_names(sections: Iterable[Section]) -> dict[str, Place]:
    """Every listener's name and where it is given first."""
    names: dict[str, Place] = {}
    for section in sections:
        name = section.text("name", required=True)
        if name is None:
            continue
        path = section.path_to("name")
        if not LISTENER_NAME.fullmatch(name):
            hint = f"use 1 to {LONGEST_NAME} letters (a-z), digits, _ - and ."
            section.findings.error(path, "invalid_name", f"{quoted(name)} cannot be a listener's name", hint)
        elif name in names:
            hint = f"the first is in line {names[name].line}"
            section.findings.error(path, "duplicate_listener", f"two listeners are called {quoted(name)}", hint)
        names.setdefault(name, section.findings.document.place_of(path))
    return names


def _read_listener(section: Section, names: dict[str, Place], registry: BlockRegistry) -> Listener | None:
    section.warn_of_unknown(LISTENER_KEYS, UNUSED_KEYS)
    description = section.text("description", required=True)
    block = _read_block(section, registry)
    config = _read_config(section, block)
    payload_class = _read_payload_class(section, block)
    peers = _read_peers(section, names)
    timeout = section.seconds("timeout_seconds")
    agent = section.flag("agent")
    _refuse_retries(section)
    if block is None or config is None:
        return None
    return Listener(
        name=str(section.values.get("name")),
        description=description or "",
        handler=str(section.values["handler"]),
        block=block,
        config=config,
        payload_class=payload_class,
        peers=peers,
        timeout_seconds=timeout,
        agent=agent,
    )


def _read_block(section: Section, registry: BlockRegistry) -> AnyBlock | None:
    """The block that handles the listener's messages. This is where a listener without one is refused."""
    prompted = section.values.get("prompt") is not None
    if section.values.get("handler") is None and prompted:
        hint = "give it a handler"
        message = "an agent with a prompt does not run in this version"
        section.findings.error(section.path_to("prompt"), "unsupported", message, hint, at_key=True)
        return None
    handler = section.text("handler", required=True)
    if handler is None:
        return None
    for key in MODEL_KEYS:
        if section.values.get(key) is not None:
            message = f"{quoted(key)} has no effect beside a handler"
            section.findings.warning(section.path_to(key), "unused_key", message)
    block = registry.find(handler)
    if block is None:
        path = section.path_to("handler")
        hint = section.findings.suggest(handler, registry.nearest)
        known = f"known are {', '.join(registry.names)}"
        section.findings.error(path, "unknown_handler", f"unknown handler {quoted(handler)}", hint or known)
    return block


def _read_payload_class(section: Section, block: AnyBlock | None) -> str | None:
    given = section.text("payload_class")
    if given is None or block is None:
        return given
    own = block.payload.__name__
    if given not in (own, f"{block.payload.__module__}.{own}", *block.payload_aliases):
        message = f"{quoted(block.name)} does not take {quoted(given)}"
        hint = f"write {quoted((*block.payload_aliases, own)[0])}, or leave payload_class out"
        section.findings.error(section.path_to("payload_class"), "payload_class_mismatch", message, hint)
    return given


def _read_config(section: Section, block: AnyBlock | None) -> BlockConfig | None:
    key = "config" if section.values.get("config") is not None else "tool_config"
    if key == "config" and section.values.get("tool_config") is not None:
        message = '"tool_config" is another name of "config", which is given too'
        section.findings.error(section.path_to("tool_config"), "duplicate_key", message, at_key=True)
    given = section.section(key)
    if block is None or (given is None and section.values.get(key) is not None):
        return None
    try:
        config: BlockConfig = block.config.model_validate(given.values if given else {})
    except ValidationError as error:
        for reason in error.errors(include_url=False, include_context=False, include_input=False):
            path = (*section.path_to(key), *reason["loc"])
            where = ".".join(str(part) for part in (key, *reason["loc"]))
            unknown = reason["type"] == "extra_forbidden"
            message = f"{where} is no setting of {quoted(block.name)}" if unknown else f"{where}: {reason['msg']}"
            section.findings.error(path, "invalid_config", message, at_key=unknown)
        return None
    return config


def _read_peers(section: Section, names: dict[str, Place]) -> tuple[str, ...]:
    """The names of those who get the answer. This is where a peer with a condition is refused."""
    peers: dict[str, None] = {}
    nearest = _nearest_of(names)
    for index, peer in enumerate(section.items("peers", "write [name]")):
        path = (*section.path_to("peers"), index)
        if isinstance(peer, dict):
            message = "a peer with a condition (when, on) does not run in this version"
            section.findings.error(path, "unsupported", message, "write the peer's name only")
        elif not isinstance(peer, str):
            section.findings.error(path, "wrong_type", "a peer must be the name of a listener")
        elif peer not in names:
            hint = section.findings.suggest(peer, nearest)
            section.findings.error(path, "unknown_peer", f"unknown peer {quoted(peer)}", hint)
        elif peer in peers:
            section.findings.error(path, "duplicate_peer", f"the peer {quoted(peer)} is given twice")
        else:
            peers[peer] = None
    return tuple(peers)


def _refuse_retries(section: Section) -> None:
    if section.count("retries", 0, 100):
        message = "retries do not run in this version"
        section.findings.error(section.path_to("retries"), "unsupported", message, "leave them out")
