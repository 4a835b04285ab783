"""Organisms, parsed once per text: the same text means the same organism, whichever database it came from."""

from __future__ import annotations

import asyncio
from functools import lru_cache

from bloxserver.blocks.registry import get_registry
from bloxserver.organism.model import Organism
from bloxserver.organism.parse import parse

LARGE = 32 * 1024
"""Characters from which parsing takes long enough to keep other requests waiting."""


@lru_cache(maxsize=256)
def _parsed(text: str) -> Organism:
    return parse(text, get_registry())


async def parse_organism(text: str) -> Organism:
    """The organism; raises `OrganismError`."""
    if len(text) > LARGE:
        return await asyncio.to_thread(_parsed, text)
    return _parsed(text)
