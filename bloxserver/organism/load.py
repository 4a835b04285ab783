"""Definitions as executions run them: read once, outside of the event loop if they are large.

The parser is imported when it is needed: a process that only serves the API needs it late or never.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, TypeAlias

from bloxserver.isolation import RequestTooLarge, ResourceExceeded, TaskCrashed, isolated
from bloxserver.organism.messages import problems_of_json
from bloxserver.organism.problems import OrganismError, Problem

if TYPE_CHECKING:
    from bloxserver.organism.compiled import CompiledOrganism
    from bloxserver.organism.model import Organism

SMALL_CHARACTERS = 512
"""Definitions of up to this length are read in less than 5 milliseconds, also if they are invalid."""
MAX_CACHED_CHARACTERS = 8 * 1024 * 1024

RunnableOrganism: TypeAlias = "Organism | CompiledOrganism"


async def parse_organism(text: str, tenant: Hashable) -> RunnableOrganism:
    """The definition, read once per text. `tenant` is its owner.

    Raises `OrganismError`, and `IsolationUnavailable` if it cannot be read now.
    """
    return await _cache.get(text, tenant)


async def run_isolated(function: str, request: bytes, tenant: Hashable) -> Any:
    """Call one of the functions for definitions, and return its JSON.

    Raises `OrganismError` if the definition is too costly to read, and `IsolationUnavailable`.
    """
    return json.loads(await run_isolated_bytes(function, request, tenant))


async def run_isolated_bytes(function: str, request: bytes, tenant: Hashable, max_bytes: int | None = None) -> bytes:
    """As `run_isolated`, for functions whose response is not only JSON, and with another limit of the request."""
    try:
        return (await isolated(function, request, tenant=tenant, max_bytes=max_bytes)).body
    except RequestTooLarge as error:
        raise _refused("yaml_limit", str(error), "shorten it") from None
    except ResourceExceeded as error:
        message = f"reading the definition exceeds its {error.resource} limit"
        raise _refused("too_costly", message, "divide it between several flows") from None
    except TaskCrashed:
        raise _refused("too_costly", "the definition cannot be read", "simplify it") from None


def _refused(code: str, message: str, hint: str) -> OrganismError:
    return OrganismError([Problem(1, 1, code, message, hint)])


class _Cache:
    """The organisms of the last texts. A text is read once, however many executions wait for it."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, RunnableOrganism] = OrderedDict()
        self._characters = 0
        self._reading: dict[str, asyncio.Task[RunnableOrganism]] = {}

    async def get(self, text: str, tenant: Hashable) -> RunnableOrganism:
        if (known := self._known.get(text)) is not None:
            self._known.move_to_end(text)
            return known
        if len(text) <= SMALL_CHARACTERS:
            from bloxserver.blocks.registry import get_registry
            from bloxserver.organism.parse import parse

            return self._add(text, parse(text, get_registry()))
        reading = self._reading.get(text)
        if reading is None or reading.get_loop() is not asyncio.get_running_loop():
            reading = self._reading[text] = asyncio.create_task(self._read(text, tenant))
        return await asyncio.shield(reading)

    async def _read(self, text: str, tenant: Hashable) -> RunnableOrganism:
        from bloxserver.blocks.registry import get_registry
        from bloxserver.organism.compiled import CompiledOrganism

        try:
            request = text.encode(errors="surrogatepass")
            compiled = await run_isolated("organism.compile", request, tenant)
            if (organism := compiled.get("organism")) is None:
                problems = problems_of_json(compiled["problems"])
                raise OrganismError([problem for problem in problems if problem.severity == "error"])
            return self._add(text, CompiledOrganism(organism, get_registry()))
        finally:
            self._reading.pop(text, None)

    def _add(self, text: str, organism: RunnableOrganism) -> RunnableOrganism:
        if text not in self._known:
            self._characters += len(text)
        self._known[text] = organism
        while self._characters > MAX_CACHED_CHARACTERS and len(self._known) > 1:
            removed, _ = self._known.popitem(last=False)
            self._characters -= len(removed)
        return organism


_cache = _Cache()
