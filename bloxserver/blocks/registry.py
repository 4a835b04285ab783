"""The blocks of this installation: our own, and those of packages that its operator has installed."""

from __future__ import annotations

import inspect
import json
import pkgutil
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from pydantic import BaseModel

import bloxserver.blocks
from bloxserver.blocks.base import AnyBlock, Block, BlockConfig
from bloxserver.errors import SettingsError

ENTRY_POINTS = "bloxserver.blocks"
"""The group in which a package announces a Block, or a list or tuple of them."""
WILDCARD = "*"


class BlockRegistry:
    """Blocks by name and alias. Nothing else is ever looked up: a name that is not here is unknown."""

    def __init__(self, blocks: Iterable[AnyBlock]) -> None:
        """Raises ValueError where a name is taken."""
        self._blocks: dict[str, AnyBlock] = {}
        for block in blocks:
            self.add(block)

    def add(self, block: AnyBlock) -> None:
        """Raises ValueError, and adds nothing, where one of its names is taken."""
        names = (block.name, *block.aliases)
        taken = [name for name in names if name in self._blocks or names.count(name) > 1]
        if taken:
            raise ValueError(f"two blocks are called {taken[0]}")
        self._blocks |= dict.fromkeys(names, block)

    def find(self, name: str) -> AnyBlock | None:
        """The block of that name or alias; where only aliases that end in `*` fit, that of the longest."""
        if name in self._blocks and not name.endswith(WILDCARD):
            return self._blocks[name]
        fitting = [alias for alias in self._blocks if alias.endswith(WILDCARD) and name.startswith(alias[:-1])]
        return self._blocks[max(fitting, key=len)] if fitting else None

    def nearest(self, name: str) -> str | None:
        """The known name that an unknown one was probably meant to be."""
        known = [known for known in self._blocks if not known.endswith(WILDCARD)]
        return next(iter(get_close_matches(name, known, n=1, cutoff=0.6)), None)

    @property
    def blocks(self) -> Sequence[AnyBlock]:
        """All of them, by name."""
        return tuple(sorted({block.name: block for block in self._blocks.values()}.values(), key=lambda one: one.name))

    @property
    def names(self) -> list[str]:
        return [block.name for block in self.blocks]


@lru_cache
def get_registry() -> BlockRegistry:
    """The blocks of this installation. Raises SettingsError where an installed package's cannot be taken."""
    registry = BlockRegistry(_built_in_blocks())
    problems: list[str] = []
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: (entry.name, entry.value)):
        try:
            for block in _load(entry):
                registry.add(block)
        # Whatever a package does while it is imported, the operator is told in one line which one it is.
        except Exception as error:
            reason = " ".join(str(error).split()) or "no reason given"
            told = reason if isinstance(error, ValueError) else f"{type(error).__name__}: {reason}"
            package = f" of {entry.dist.name}" if entry.dist else ""
            problems.append(f'the block plugin "{entry.name} = {entry.value}"{package} cannot be used: {told}')
    if problems:
        raise SettingsError(problems)
    return registry


def _built_in_blocks() -> Iterable[AnyBlock]:
    """The `block` of every module beside this one that has one."""
    for name in sorted(module.name for module in pkgutil.iter_modules(bloxserver.blocks.__path__)):
        block = getattr(import_module(f"{bloxserver.blocks.__name__}.{name}"), "block", None)
        if isinstance(block, Block):
            yield block


def _load(entry: EntryPoint) -> list[AnyBlock]:
    """What the entry point stands for. Raises ValueError for anything but blocks, and whatever its import raises."""
    loaded = entry.load()
    blocks = list(loaded) if isinstance(loaded, list | tuple) else [loaded]
    for block in blocks:
        if not isinstance(block, Block):
            raise ValueError(f"a value of type {type(block).__name__} is no Block")
        if problem := _problem_of(block):
            raise ValueError(f"the block {block.name!r} {problem}")
    return blocks


def _problem_of(block: AnyBlock) -> str | None:
    """What would make the block fail later, during a request or an execution."""
    if not isinstance(block.name, str) or not block.name.strip() or block.name.endswith(WILDCARD):
        return "needs another name"
    if not (inspect.isclass(block.payload) and issubclass(block.payload, BaseModel)):
        return "needs a Pydantic model as its payload"
    if not (inspect.isclass(block.config) and issubclass(block.config, BlockConfig)):
        return "needs a BlockConfig as its config"
    if not inspect.iscoroutinefunction(block.handler):
        return "needs an async function as its handler"
    members = {field.alias or name for name, field in block.config.model_fields.items()}
    if unknown := sorted((block.templates | block.rendered) - members):
        return f"takes placeholders in {unknown[0]!r}, which its config does not have"
    if not all(isinstance(text, str) for text in (block.description, *block.aliases)):
        return "needs texts as its description and aliases"
    try:
        json.dumps([block.payload.model_json_schema(), block.config.model_json_schema(), block.example])
    except Exception as error:
        return f"cannot be shown as JSON: its schemas, or its example ({type(error).__name__})"
    return None
