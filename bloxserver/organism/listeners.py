"""The listeners of a definition: their names, blocks and edges."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from bloxserver.blocks.agent import agent
from bloxserver.blocks.base import AnyBlock, Tool
from bloxserver.blocks.names import read_names, read_steps
from bloxserver.blocks.registry import BlockRegistry
from bloxserver.blocks.tools import tool_of
from bloxserver.organism.configs import MODEL_KEYS, read_config
from bloxserver.organism.joins import read_join
from bloxserver.organism.loops import LOOP_KEYS, read_loop
from bloxserver.organism.model import Listener
from bloxserver.organism.peers import read_peers
from bloxserver.organism.placeholders import Placeholders
from bloxserver.organism.problems import quoted
from bloxserver.organism.sections import MAX_NAME, MAX_TIMEOUT, UNUSED_KEYS, Section
from bloxserver.organism.yaml_source import Place

MAX_RETRIES = 20
MAX_WAIT = 30 * 24 * 60 * 60
"""The longest timeout of a listener that waits for a call, in seconds."""
LISTENER_NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{MAX_NAME}}}")

LISTENER_KEYS = (
    "name",
    "handler",
    "payload_class",
    "description",
    "config",
    "tool_config",
    "peers",
    "join",
    "timeout_seconds",
    "retries",
    "backoff_seconds",
    "agent",
    *LOOP_KEYS,
    *MODEL_KEYS,
)


class _ParsedListener(NamedTuple):
    """A valid listener, and the names of the peers that it can call."""

    listener: Listener
    tools: Sequence[str]


def read_listeners(top: Section, registry: BlockRegistry) -> tuple[Listener, ...]:
    """Return the valid listeners, and report the problems of the others."""
    items = top.items("listeners", 'begin each listener with "- name:"')
    if top.values.get("listeners") in (None, []):
        top.missing("listeners", "add at least one listener")
    sections: list[Section] = []
    for index, item in enumerate(items):
        path = ("listeners", index)
        if isinstance(item, dict):
            sections.append(Section(item, path, top.report))
        else:
            top.report.error(path, "wrong_type", "a listener must be a mapping", 'begin it with "- name:"')
    names = _read_names(sections)
    placeholders = Placeholders(top.report)
    found = [_read_listener(section, _read_block(section, registry), names, placeholders) for section in sections]
    drawn = [each for each in found if each is not None]
    by_name = {each.listener.name: each.listener for each in reversed(drawn)}
    return tuple(replace(each.listener, tools=_tools(each.tools, by_name)) for each in drawn)


def _read_names(sections: Iterable[Section]) -> dict[str, Place]:
    """Return the name of every listener, with the place where it is used first."""
    names: dict[str, Place] = {}
    for section in sections:
        name = section.text("name", required=True)
        if name is None:
            continue
        path = section.path_to("name")
        if not LISTENER_NAME.fullmatch(name):
            hint = f"use 1 to {MAX_NAME} letters (a-z), digits, _ - and ."
            section.report.error(path, "invalid_name", f"{quoted(name)} is not a valid name for a listener", hint)
        elif name in names:
            hint = f"the first is in line {names[name].line}; rename this listener"
            section.report.error(path, "duplicate_listener", f"two listeners have the name {quoted(name)}", hint)
        names.setdefault(name, section.report.document.place_of(path))
    return names


def _read_listener(
    section: Section, block: AnyBlock | None, names: dict[str, Place], placeholders: Placeholders
) -> _ParsedListener | None:
    section.report_unknown_keys(LISTENER_KEYS, UNUSED_KEYS)
    description = section.text("description", required=True)
    loop = read_loop(section, block)
    config = read_config(section, block, placeholders, is_loop=loop.for_each is not None)
    payload_class = _read_payload_class(section, block)
    targets = config.targets() if config is not None else []
    peers, tools = read_peers(section, names, is_agent=block is agent, targets=targets)
    awaits_call = block is not None and block.awaits_call
    timeout = section.seconds("timeout_seconds", MAX_WAIT if awaits_call else MAX_TIMEOUT)
    retries = section.count("retries", 0, MAX_RETRIES)
    backoff = section.seconds("backoff_seconds")
    join = read_join(section)
    is_agent = section.flag("agent")
    if config is None or config.valid is None:
        return None
    texts = (config.given, loop.for_each, *(peer.when for peer in peers))
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
        names=read_names(texts),
        read_steps=read_steps(texts),
        join=join,
        agent=is_agent,
        **loop._asdict(),
    )
    return _ParsedListener(listener, tools)


def _tools(names: Sequence[str], listeners: dict[str, Listener]) -> tuple[Tool, ...]:
    tools: list[Tool] = []
    for listener in (listeners[name] for name in names if name in listeners):
        taken = {tool.name for tool in tools}
        block, config, given = listener.block, listener.config, listener.given_config
        tool = tool_of(listener.name, listener.description, block, config, taken, given, listener.for_each)
        tools.append(tool)
    return tuple(tools)


def _read_block(section: Section, registry: BlockRegistry) -> AnyBlock | None:
    """Return the block of the listener: the one that its handler names, or the agent if it has a prompt only."""
    if section.values.get("handler") is None and section.values.get("prompt") is not None:
        return agent
    if section.values.get("handler") is None:
        section.missing("handler", "add a handler, or a prompt to make the listener an agent")
        return None
    handler = section.text("handler", required=True)
    if handler is None:
        return None
    for key in MODEL_KEYS:
        if section.values.get(key) is not None:
            message = f"{quoted(key)} has no effect together with a handler"
            hint = "remove it, or remove the handler to make the listener an agent"
            section.report.warning(section.path_to(key), "unused_key", message, hint)
    block = registry.find(handler)
    if block is None:
        path = section.path_to("handler")
        known = f"available handlers are {', '.join(registry.names)}"
        hint = section.report.suggest(handler, registry.nearest, known)
        section.report.error(path, "unknown_handler", f"unknown handler {quoted(handler)}", hint)
    return block


def _read_payload_class(section: Section, block: AnyBlock | None) -> str | None:
    given = section.text("payload_class")
    if given is None or block is None or block is agent:
        return given
    own = block.payload.__name__
    if given not in (own, f"{block.payload.__module__}.{own}", *block.payload_aliases):
        message = f"{quoted(block.name)} does not accept the payload class {quoted(given)}"
        hint = f"write {quoted((*block.payload_aliases, own)[0])}, or remove payload_class"
        section.report.error(section.path_to("payload_class"), "payload_class_mismatch", message, hint)
    return given
