"""The listeners of a definition: their names, blocks and configs, and the ways between them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from pydantic import BaseModel, JsonValue, ValidationError

from bloxserver.blocks import templates
from bloxserver.blocks.agent import agent, tool_of
from bloxserver.blocks.base import AnyBlock, BlockConfig, Tool
from bloxserver.blocks.registry import BlockRegistry
from bloxserver.organism.model import Listener
from bloxserver.organism.peers import read_peers
from bloxserver.organism.problems import Path, quoted
from bloxserver.organism.sections import MAX_NAME, UNUSED_KEYS, Section, nearest_of
from bloxserver.organism.yaml_loader import Place

MAX_RETRIES = 20
LISTENER_NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{MAX_NAME}}}")
SECRET_PLACEHOLDER = re.compile(r"\{\{\s*secrets\.")

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
    "backoff_seconds",
    "agent",
    *MODEL_KEYS,
)
TEMPLATE_ROOTS = frozenset({"payload", "input", "secrets"})


class _Config(NamedTuple):
    """A listener's config as it was found: valid, as written, and what is to be filled in."""

    valid: BlockConfig
    given: dict[str, JsonValue]
    templates: frozenset[str]
    secrets: frozenset[str]
    places: dict[str, Place]


def read_listeners(top: Section, registry: BlockRegistry) -> tuple[Listener, ...]:
    """Those that are valid; what is wrong with the others is noted."""
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
    blocks = [_read_block(section, registry) for section in sections]
    callable_blocks = {
        str(section.values.get("name")): (section.text_or_empty("description"), block)
        for section, block in zip(sections, blocks, strict=True)
        if block is not None
    }
    listeners = [
        _read_listener(section, block, names, callable_blocks) for section, block in zip(sections, blocks, strict=True)
    ]
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
            hint = f"use 1 to {MAX_NAME} letters (a-z), digits, _ - and ."
            section.findings.error(path, "invalid_name", f"{quoted(name)} cannot be a listener's name", hint)
        elif name in names:
            hint = f"the first is in line {names[name].line}; give this one another name"
            section.findings.error(path, "duplicate_listener", f"two listeners are called {quoted(name)}", hint)
        names.setdefault(name, section.findings.document.place_of(path))
    return names


def _read_listener(
    section: Section,
    block: AnyBlock | None,
    names: dict[str, Place],
    blocks: dict[str, tuple[str, AnyBlock]],
) -> Listener | None:
    section.warn_of_unknown(LISTENER_KEYS, UNUSED_KEYS)
    description = section.text("description", required=True)
    config = _read_config(section, block)
    payload_class = _read_payload_class(section, block)
    targets = tuple(block.targets(config.valid)) if block is not None and config is not None else ()
    peers, tools = read_peers(section, names, is_agent=block is agent, targets=targets)
    timeout = section.seconds("timeout_seconds")
    retries = section.count("retries", 0, MAX_RETRIES)
    backoff = section.seconds("backoff_seconds")
    is_agent = section.flag("agent")
    if block is None or config is None:
        return None
    return Listener(
        name=str(section.values.get("name")),
        description=description or "",
        handler=section.text("handler"),
        block=block,
        config=config.valid,
        given_config=config.given,
        templates=config.templates,
        secrets=config.secrets,
        places=config.places,
        payload_class=payload_class,
        peers=peers,
        tools=_tools(tools, blocks),
        timeout_seconds=timeout,
        retries=retries or 0,
        backoff_seconds=backoff or 1,
        agent=is_agent,
    )


def _tools(names: Sequence[str], blocks: dict[str, tuple[str, AnyBlock]]) -> tuple[Tool, ...]:
    tools: list[Tool] = []
    for name in names:
        if name in blocks:
            description, block = blocks[name]
            model: type[BaseModel] = block.payload
            tools.append(tool_of(name, description, model, {tool.name for tool in tools}))
    return tuple(tools)


def _read_block(section: Section, registry: BlockRegistry) -> AnyBlock | None:
    """The block that handles the listener's messages: the one that it names, or the agent where it has a prompt."""
    if section.values.get("handler") is None and section.values.get("prompt") is not None:
        return agent
    if section.values.get("handler") is None:
        section.missing("handler", "give it a handler, or a prompt, which makes it an agent")
        return None
    handler = section.text("handler", required=True)
    if handler is None:
        return None
    for key in MODEL_KEYS:
        if section.values.get(key) is not None:
            message = f"{quoted(key)} has no effect beside a handler"
            hint = "remove it, or remove the handler to make this an agent"
            section.findings.warning(section.path_to(key), "unused_key", message, hint)
    block = registry.find(handler)
    if block is None:
        path = section.path_to("handler")
        known = f"known are {', '.join(registry.names)}"
        hint = section.findings.suggest(handler, registry.nearest, known)
        section.findings.error(path, "unknown_handler", f"unknown handler {quoted(handler)}", hint)
    return block


def _read_payload_class(section: Section, block: AnyBlock | None) -> str | None:
    given = section.text("payload_class")
    if given is None or block is None or block is agent:
        return given
    own = block.payload.__name__
    if given not in (own, f"{block.payload.__module__}.{own}", *block.payload_aliases):
        message = f"{quoted(block.name)} does not take {quoted(given)}"
        hint = f"write {quoted((*block.payload_aliases, own)[0])}, or leave payload_class out"
        section.findings.error(section.path_to("payload_class"), "payload_class_mismatch", message, hint)
    return given


def _read_config(section: Section, block: AnyBlock | None) -> _Config | None:
    key = "config" if section.values.get("config") is not None else "tool_config"
    if key == "config" and section.values.get("tool_config") is not None:
        message = '"tool_config" is another name of "config", which is given too'
        hint = "put everything into config"
        section.findings.error(section.path_to("tool_config"), "duplicate_key", message, hint, at_key=True)
    written = section.section(key)
    if block is None or (written is None and section.values.get(key) is not None):
        return None
    given = dict(written.values) if written else {}
    places: dict[str, Path] = {name: (*section.path_to(key), name) for name in given}
    if block is agent:
        for name in MODEL_KEYS:
            if section.values.get(name) is not None:
                given[name], places[name] = section.values[name], section.path_to(name)
    used, secrets, refused = _read_templates(section, block, given, places)
    valid = _validated(section, block, given, places, section.path_to(key), refused)
    if valid is None:
        return None
    document = section.findings.document
    written_at = {name: document.place_of(path) for name, path in places.items()}
    return _Config(valid, given, used, secrets, written_at | {"name": document.place_of(section.path_to("name"))})


def _validated(
    section: Section,
    block: AnyBlock,
    given: dict[str, JsonValue],
    places: dict[str, Path],
    around: Path,
    refused: Collection[str],
) -> BlockConfig | None:
    """The config, or None; what is wrong with members that were refused already is not told again."""
    try:
        valid: BlockConfig = block.config.model_validate(given)
    except ValidationError as error:
        for reason in error.errors(include_url=False, include_context=False, include_input=False):
            location = reason["loc"]
            if location and location[0] in refused:
                continue
            path = (*places.get(str(location[0]), (*around, location[0])), *location[1:]) if location else around
            where = ".".join(str(part) for part in path[2:])
            unknown = reason["type"] == "extra_forbidden"
            message = (
                f"{where} is no setting of {quoted(block.name)}"
                if unknown
                else f"{where}: {reason['msg'].removeprefix('Value error, ')}"
            )
            hint = _config_hint(section, block, str(location[-1]) if location else "", unknown=unknown)
            section.findings.error(path, "invalid_config", message, hint, at_key=unknown)
        return None
    return valid


def _config_hint(section: Section, block: AnyBlock, name: str, *, unknown: bool) -> str:
    fields = {field.alias or key: field for key, field in block.config.model_fields.items()}
    if unknown:
        known = f"its settings are {', '.join(fields)}" if fields else "it has no settings"
        return section.findings.suggest(name, nearest_of(fields), known)
    described = fields[name].description if name in fields else None
    return f"correct it; its meaning: {described}" if described else f"see the settings of {block.name}"


def _read_templates(
    section: Section, block: AnyBlock, given: dict[str, JsonValue], places: dict[str, Path]
) -> tuple[frozenset[str], frozenset[str], set[str]]:
    """The members of the config that have placeholders to be filled in, the names of the secrets in them, and the
    members whose placeholders cannot be.
    """
    used: set[str] = set()
    secrets: set[str] = set()
    refused: set[str] = set()
    for name, value in given.items():
        if name not in block.templates:
            if _mentions_secret(value):
                allowed = f"secrets may stand in {', '.join(sorted(block.templates))}"
                message = f"{name} may not hold a secret: it could be stored with the answer"
                hint = (
                    allowed if block.templates else "use the secret in a block that calls a server, like http.request"
                )
                section.findings.error(places[name], "secret_not_allowed", message, hint)
                refused.add(name)
            continue
        try:
            templates.check(value, TEMPLATE_ROOTS)
            if templates.uses(value):
                used.add(name)
                secrets |= templates.secret_names(value)
        except ValueError as error:
            hint = "write {{ payload.path.to.value }} or {{ secrets.NAME }}"
            section.findings.error(places[name], "invalid_template", f"{name}: {error}", hint)
            refused.add(name)
    return frozenset(used), frozenset(secrets), refused


def _mentions_secret(value: JsonValue) -> bool:
    if isinstance(value, str):
        return SECRET_PLACEHOLDER.search(value) is not None
    if isinstance(value, dict):
        return any(_mentions_secret(child) for child in value.values())
    return isinstance(value, list) and any(_mentions_secret(child) for child in value)
