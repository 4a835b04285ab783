"""Short sessions beside that of the request."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.database import get_db, read_only_request


class SessionSource:
    """Makes short sessions for responses that outlive the request's session, with `get_db` or its override."""

    def __init__(self, request: Request) -> None:
        self._make: Callable[[], Any] = request.app.dependency_overrides.get(get_db, get_db)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A read-only session. Its connection is returned to the pool at the end of the block."""
        token = read_only_request.set(True)
        try:
            async with AsyncExitStack() as stack:
                yield await _entered(stack, self._make())
        finally:
            read_only_request.reset(token)


async def _entered(stack: AsyncExitStack, result: Any) -> AsyncSession:
    """The session from the result of a dependency: a session, an awaitable, or a generator."""
    if inspect.isasyncgen(result):
        result = await stack.enter_async_context(asynccontextmanager(lambda: result)())
    elif inspect.isgenerator(result):
        result = stack.enter_context(contextmanager(lambda: result)())
    elif inspect.isawaitable(result):
        result = await result
    session: AsyncSession = result
    return session
