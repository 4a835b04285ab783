"""Whether configs are being checked for their author, or read to run them.

Some checks of a config start a process, or take as long as a user wants. They run only where a definition is checked,
in a process of its own. Executions read definitions that have been checked before.

Which names the expressions in a config can refer to depends on its listener.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from bloxserver.blocks.names import ROOTS

_is_checking = ContextVar("is_checking", default=False)
_known_names = ContextVar("known_names", default=ROOTS)


def is_checking() -> bool:
    """Whether configs are validated completely."""
    return _is_checking.get()


@contextmanager
def checking() -> Iterator[None]:
    """Validate configs completely in this block."""
    token = _is_checking.set(True)
    try:
        yield
    finally:
        _is_checking.reset(token)


def known_names() -> frozenset[str]:
    """The names that the expressions of the config that is validated can refer to."""
    return _known_names.get()


@contextmanager
def knowing(names: frozenset[str]) -> Iterator[None]:
    """Validate configs whose expressions can refer to these names in this block."""
    token = _known_names.set(names)
    try:
        yield
    finally:
        _known_names.reset(token)
