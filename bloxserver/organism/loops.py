"""The keys of a listener that handle each item of a list: `for_each`, `parallel` and `on_item_error`."""

from __future__ import annotations

from typing import Literal, NamedTuple

from bloxserver.blocks.base import AnyBlock, no_targets
from bloxserver.blocks.expressions import check_items
from bloxserver.organism.problems import quoted
from bloxserver.organism.sections import Section

LOOP_KEYS = ("for_each", "parallel", "on_item_error")
DEFAULT_PARALLEL = 10
MAX_PARALLEL = 100
ON_ITEM_ERROR = ("fail", "collect")
SINGLE = frozenset({"wait.webhook", "respond", "stop"})
"""Blocks that act once on an execution. An execution cannot do it for each item."""


class Loop(NamedTuple):
    """How a listener handles the items of a list; without `for_each`, it handles its messages as they are."""

    for_each: str | None = None
    parallel: int = DEFAULT_PARALLEL
    on_item_error: Literal["fail", "collect"] = "fail"


def read_loop(section: Section, block: AnyBlock | None) -> Loop:
    """Return the loop of a listener, and report its problems."""
    for_each = section.text("for_each")
    parallel = section.count("parallel", 1, MAX_PARALLEL) or DEFAULT_PARALLEL
    on_item_error = section.text("on_item_error")
    if on_item_error is not None and on_item_error not in ON_ITEM_ERROR:
        message, hint = f'"on_item_error" cannot be {quoted(on_item_error)}', "write fail or collect"
        section.report.error(section.path_to("on_item_error"), "wrong_type", message, hint)
    if section.values.get("for_each") is None:
        _report_unused(section)
        return Loop()
    if for_each is not None:
        _check(section, for_each, block)
    return Loop(for_each, parallel, "collect" if on_item_error == "collect" else "fail")


def _report_unused(section: Section) -> None:
    for key in LOOP_KEYS[1:]:
        if section.values.get(key) is not None:
            message = f'{quoted(key)} has no effect without "for_each"'
            section.report.warning(section.path_to(key), "unused_key", message, "remove it, or add for_each")


def _check(section: Section, for_each: str, block: AnyBlock | None) -> None:
    path = section.path_to("for_each")
    try:
        check_items(for_each)
    except ValueError as error:
        hint = "write a CEL expression whose value is a list, like payload.items"
        section.report.error(path, "invalid_expression", str(error), hint)
    if block is None:
        return
    if block.targets is not no_targets:
        message = f"{quoted(block.name)} cannot have for_each: the answer of a loop is a list and goes to all peers"
        hint = "select the peers after the loop, with a condition or in another listener"
        section.report.error(path, "unsupported", message, hint, at_key=True)
    elif block.name in SINGLE or block.awaits_call:
        message = f"{quoted(block.name)} cannot have for_each: it acts once in an execution"
        section.report.error(path, "unsupported", message, "remove for_each", at_key=True)
