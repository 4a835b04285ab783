"""The blocks of this installation: the built-in ones and those of installed packages."""

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
"""The group of entry points in which a package declares a Block, or a list or tuple of blocks."""
WILDCARD = "*"


class BlockRegistry:
    """Blocks by name and alias. Handlers of definitions are looked up here only and never imported."""

    def __init__(self, blocks: Iterable[AnyBlock]) -> None:
        """Raises ValueError if two blocks have the same name."""
        self._blocks: dict[str, AnyBlock] = {}
        for block in blocks:
            self.add(block)

    def add(self, block: AnyBlock) -> None:
        """Add a block. Raises ValueError, and adds nothing, if one of its names is in use."""
        names = (block.name, *block.aliases)
        taken = [name for name in names if name in self._blocks or names.count(name) > 1]
        if taken:
            raise ValueError(f"two blocks have the name {taken[0]}")
        self._blocks |= dict.fromkeys(names, block)

    def find(self, name: str) -> AnyBlock | None:
        """Return the block with this name or alias. Among aliases that end in `*`, the longest match is used."""
        if name in self._blocks and not name.endswith(WILDCARD):
            return self._blocks[name]
        fitting = [alias for alias in self._blocks if alias.endswith(WILDCARD) and name.startswith(alias[:-1])]
        return self._blocks[max(fitting, key=len)] if fitting else None

    def nearest(self, name: str) -> str | None:
        """Return the known name that is most similar to an unknown one."""
        known = [known for known in self._blocks if not known.endswith(WILDCARD)]
        return next(iter(get_close_matches(name, known, n=1, cutoff=0.6)), None)

    @property
    def blocks(self) -> Sequence[AnyBlock]:
        """All blocks, sorted by name."""
        return tuple(sorted({block.name: block for block in self._blocks.values()}.values(), key=lambda one: one.name))

    @property
    def names(self) -> list[str]:
        return [block.name for block in self.blocks]


@lru_cache
def get_registry() -> BlockRegistry:
    """Return the blocks of this installation. Raises SettingsError if the blocks of a package are invalid."""
    registry = BlockRegistry(_built_in_blocks())
    problems: list[str] = []
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: (entry.name, entry.value)):
        try:
            for block in _load(entry):
                registry.add(block)
        # Importing a package can raise anything. The operator gets one line that names the package.
        except Exception as error:
            reason = " ".join(str(error).split()) or "no reason given"
            shown = reason if isinstance(error, ValueError) else f"{type(error).__name__}: {reason}"
            package = f" of {entry.dist.name}" if entry.dist else ""
            problems.append(f'the block plugin "{entry.name} = {entry.value}"{package} cannot be used: {shown}')
    if problems:
        raise SettingsError(problems)
    return registry


def _built_in_blocks() -> Iterable[AnyBlock]:
    """Yield the `block` of every module of this package that has one."""
    for name in sorted(module.name for module in pkgutil.iter_modules(bloxserver.blocks.__path__)):
        block = getattr(import_module(f"{bloxserver.blocks.__name__}.{name}"), "block", None)
        if isinstance(block, Block):
            yield block


def _load(entry: EntryPoint) -> list[AnyBlock]:
    """Load the blocks of an entry point. Raises ValueError for other values, and any exception of the import."""
    loaded = entry.load()
    blocks = list(loaded) if isinstance(loaded, list | tuple) else [loaded]
    for block in blocks:
        if not isinstance(block, Block):
            raise ValueError(f"a value of type {type(block).__name__} is not a Block")
        if problem := _problem_of(block):
            raise ValueError(f"the block {block.name!r} {problem}")
    return blocks


def _problem_of(block: AnyBlock) -> str | None:
    """Return the reason why the block would fail later, during a request or an execution."""
    if not isinstance(block.name, str) or not block.name.strip() or block.name.endswith(WILDCARD):
        return "has an invalid name"
    if not (inspect.isclass(block.payload) and issubclass(block.payload, BaseModel)):
        return "must have a Pydantic model as payload"
    if not (inspect.isclass(block.config) and issubclass(block.config, BlockConfig)):
        return "must have a BlockConfig as config"
    if not inspect.iscoroutinefunction(block.handler):
        return "must have an async function as handler"
    members = {field.alias or name for name, field in block.config.model_fields.items()}
    if unknown := sorted((block.templates | block.rendered) - members):
        return f"declares placeholders in {unknown[0]!r}, which its config does not have"
    if not all(isinstance(text, str) for text in (block.description, *block.aliases)):
        return "must have strings as description and aliases"
    try:
        json.dumps([block.payload.model_json_schema(), block.config.model_json_schema(), block.example])
    except Exception as error:
        return f"has a schema or an example that cannot be serialized as JSON ({type(error).__name__})"
    return None
