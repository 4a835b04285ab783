"""The blocks that organisms may name. A name that is not here is unknown: nothing a user wrote is ever imported."""

from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache

from bloxserver.blocks import delay, echo, greeting, http_request, transform
from bloxserver.blocks.base import AnyBlock


class BlockRegistry:
    """Blocks by name and alias."""

    def __init__(self, blocks: Iterable[AnyBlock]) -> None:
        self._blocks: dict[str, AnyBlock] = {}
        for block in blocks:
            for name in (block.name, *block.aliases):
                if name in self._blocks:
                    raise ValueError(f"two blocks are called {name}")
                self._blocks[name] = block

    def find(self, name: str) -> AnyBlock | None:
        return self._blocks.get(name)

    def nearest(self, name: str) -> str | None:
        """The known name that an unknown one was probably meant to be."""
        return next(iter(get_close_matches(name, self._blocks, n=1, cutoff=0.6)), None)

    @property
    def names(self) -> list[str]:
        return sorted({block.name for block in self._blocks.values()})


@lru_cache
def get_registry() -> BlockRegistry:
    """The blocks of this installation."""
    return BlockRegistry([delay.block, echo.block, greeting.block, http_request.block, transform.block])
