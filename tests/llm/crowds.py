"""A model server that counts the requests in flight, and holds each until enough others are in flight with it."""

from __future__ import annotations

import asyncio
from asyncio import StreamWriter

from tests.llm_server import Asked, Reply, says


class Crowd:
    """A script. Requests are answered together, as soon as `size` of them are in flight."""

    def __init__(self, size: int) -> None:
        self.most = 0
        """The largest number of requests in flight."""
        self.texts: list[str] = []
        """The prompts, in the order in which they arrived."""
        self._in_flight = 0
        self._barrier = asyncio.Barrier(size)
        self._changed = asyncio.Condition()

    def __call__(self, asked: Asked) -> Reply:
        async def hold(writer: StreamWriter) -> None:
            async with self._changed:
                self._in_flight += 1
                self.most = max(self.most, self._in_flight)
                self.texts += asked.texts[-1:]
                self._changed.notify_all()
            await self._barrier.wait()
            self._in_flight -= 1
            reply = says("Here.")("openai")
            assert isinstance(reply, bytes)
            writer.write(reply)

        return lambda api: hold

    async def arrived(self, number: int) -> None:
        """Wait until this many requests have arrived in total."""
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(lambda: len(self.texts) >= number)
