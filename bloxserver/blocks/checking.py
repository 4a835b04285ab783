"""Whether configs are being checked for their author, or read to run them.

Some checks of a config start a process, or take as long as a user wants. They run only where a definition is checked,
in a process of its own. Executions read definitions that have been checked before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_is_checking = ContextVar("is_checking", default=False)


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
