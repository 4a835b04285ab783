"""The listeners of a definition: their names and blocks, and the ways between them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from bloxserver.blocks.agent import agent
from bloxserver.blocks.base import AnyBlock, Tool
from bloxserver.blocks.registry import BlockRegistry
from bloxserver.blocks.tools import tool_of
from bloxserver.organism.configs import MODEL_KEYS, read_config
from bloxserver.organism.model import Listener
from bloxserver.organism.peers import read_peers
from bloxserver.organism.placeholders import Placeholders
from bloxserver.organism.problems import quoted
from bloxserver.organism.sections import MAX_NAME, UNUSED_KEYS, Section
from bloxserver.organism.yaml_source import Place

MAX_RETRIES = 20
LISTENER_NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{MAX_NAME}}}")

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


class _Drawn(NamedTuple):
    """A listener as it was found, and the names of the peers that it may call."""

    listener: Listener
    tools: Sequence[str]


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
    placeholders = Placeholders(top.findings)
    found = [_read_listener(section, _read_block(section, registry), names, placeholders) for section in sections]
    drawn = [each for each in found if each is not None]
    by_name = {each.listener.name: each.listener for each in reversed(drawn)}
    return tuple(replace(each.listener, tools=_tools(each.tools, by_name)) for each in drawn)


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
    section: Section, block: AnyBlock | None, names: dict[str, Place], placeholders: Placeholders
) -> _Drawn | None:
    section.warn_of_unknown(LISTENER_KEYS, UNUSED_KEYS)
    description = section.text("description", required=True)
    config = read_config(section, block, placeholders)
    payload_class = _read_payload_class(section, block)
    targets = config.targets() if config is not None else []
    peers, tools = read_peers(section, names, is_agent=block is agent, targets=targets)
    timeout = section.seconds("timeout_seconds")
    retries = section.count("retries", 0, MAX_RETRIES)
    backoff = section.seconds("backoff_seconds")
    is_agent = section.flag("agent")
    if config is None or config.valid is None:
        return None
    listener = Listener(
        name=str(section.values.get("name")),
        description=description or "",
        handler=section.text_or_empty("handler") or None,
        block=config.block,
        config=config.valid,
        given_config=config.given,
        templates=config.templates,
        secrets=config.secrets,
        payload_class=payload_class,
        peers=peers,
        timeout_seconds=timeout,
        retries=retries or 0,
        backoff_seconds=backoff or 1,
        agent=is_agent,
    )
    return _Drawn(listener, tools)


def _tools(names: Sequence[str], listeners: dict[str, Listener]) -> tuple[Tool, ...]:
    tools: list[Tool] = []
    for listener in (listeners[name] for name in names if name in listeners):
        taken = {tool.name for tool in tools}
        block, config, given = listener.block, listener.config, listener.given_config
        tools.append(tool_of(listener.name, listener.description, block, config, taken, given))
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
