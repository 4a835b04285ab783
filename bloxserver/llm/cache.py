"""Responses of language models that are kept for equal requests.

`cache_keys` defines equal requests. A process keeps its own responses in memory. The response to a call that made no
request of its own is marked: `cached_as` returns the mark, for accounting and for HTTP headers.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal, NamedTuple
from uuid import UUID

from bloxserver.clients.model_errors import ModelError
from bloxserver.llm.cache_keys import request_key, seconds_kept
from bloxserver.llm.calls import ModelCall
from bloxserver.model_catalogue import Route
from bloxserver.observability import metrics

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelResponse

MAX_RESPONSE_BYTES = 256 * 1024
"""Larger responses are not kept. Agents refuse them."""
ENTRY_BYTES = 500
"""The memory of an entry besides the response."""
MARK = "cached"
"""The member of `ModelResponse.metadata` with the mark. Providers cannot set it, and it is not sent to models."""

Mark = Literal["hit", "coalesced"]
"""`hit`: the response was kept. `coalesced`: it is that of an equal request which was sent at the same time."""
Ask = Callable[[], Awaitable["ModelResponse"]]


def cached_as(response: ModelResponse) -> Mark | None:
    """Return the mark of a response; None if the providers were asked for it."""
    mark: Mark | None = (response.metadata or {}).get(MARK)
    return mark


@dataclass(frozen=True, slots=True)
class _Kept:
    """A response as JSON, so that callers cannot change those of others."""

    response: bytes
    until: datetime

    @property
    def size(self) -> int:
        return len(self.response) + ENTRY_BYTES


class KeptResponses:
    """Responses by the keys of requests. Those that were not used for the longest time are removed first."""

    def __init__(self, max_bytes: int, clock: Callable[[], datetime]) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self.bytes = 0

    def get(self, key: bytes) -> bytes | None:
        if (kept := self._kept.get(key)) is None:
            return None
        if self._clock() >= kept.until:
            self._remove(key)
            return None
        self._kept.move_to_end(key)
        return kept.response

    def add(self, key: bytes, response: bytes, seconds: float) -> None:
        self._remove(key)
        kept = self._kept[key] = _Kept(response, self._clock() + timedelta(seconds=seconds))
        self.bytes += kept.size
        while self.bytes > self._max_bytes:
            self._remove(next(iter(self._kept)))
        metrics.LLM_CACHE_BYTES.set(self.bytes)

    def _remove(self, key: bytes) -> None:
        if (removed := self._kept.pop(key, None)) is not None:
            self.bytes -= removed.size


class Slot(NamedTuple):
    """Where a response is kept, and for how long."""

    key: bytes
    seconds: float


@dataclass(frozen=True, eq=False, slots=True)
class _Flight:
    """A request that is being sent. Its result is the response; an error; or None if there is none to share."""

    user_id: UUID
    result: asyncio.Future[bytes | ModelError | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class ResponseCache:
    """Answers a request with the response to an equal one. An instance belongs to one event loop."""

    def __init__(self, max_bytes: int, clock: Callable[[], datetime]) -> None:
        """With `max_bytes` 0, every request is sent."""
        self._is_enabled = max_bytes > 0
        self._kept = KeptResponses(max_bytes, clock)
        self._flights: dict[bytes, _Flight] = {}

    async def request(
        self, call: ModelCall, routes: Sequence[Route], user_id: UUID | None, ask: Ask, *, shared: bool
    ) -> ModelResponse:
        """Return a kept response, or that of an equal request which is being sent, or the one of `ask`.

        `shared` is whether other users may get the response. Raises `ModelError` as `ask` does. An error is shared
        with the equal requests of the same user, without its tokens.
        """
        slot = self._slot(call, routes, user_id, shared=shared)
        if slot is None or user_id is None:
            return await _ask(ask, "bypass")
        while True:
            if (kept := self._kept.get(slot.key)) is not None:
                return _marked(kept, "hit")
            if (flight := self._flights.get(slot.key)) is None:
                return await self._send(slot, user_id, ask)
            # Unlike awaiting the future, this does not cancel it together with this caller.
            await asyncio.wait([flight.result])
            result = flight.result.result()
            if isinstance(result, bytes):
                return _marked(result, "coalesced")
            if result is None:
                continue
            if flight.user_id != user_id or result.ends_execution:
                # The error may be that of a limit, a key or a budget of the other caller.
                return await _ask(ask, "miss")
            raise _shared(result)

    async def find(
        self, call: ModelCall, routes: Sequence[Route], user_id: UUID | None, *, shared: bool
    ) -> tuple[ModelResponse | None, Slot | None]:
        """Return the response that `request` would return without `ask`, and otherwise the place for a new one.

        It waits for an equal request which is being sent. The place is None if a new response must not be kept.
        """
        slot = self._slot(call, routes, user_id, shared=shared)
        if slot is None:
            metrics.LLM_CACHE.labels("bypass").inc()
            return None, None
        if (kept := self._kept.get(slot.key)) is not None:
            return _marked(kept, "hit"), None
        if (flight := self._flights.get(slot.key)) is not None:
            await asyncio.wait([flight.result])
            if isinstance(result := flight.result.result(), bytes):
                return _marked(result, "coalesced"), None
        metrics.LLM_CACHE.labels("miss").inc()
        return None, slot

    def add(self, slot: Slot, response: ModelResponse) -> None:
        """Keep the complete response to a request that `find` did not find."""
        self._keep(slot, _dumped(response), response)

    def _slot(self, call: ModelCall, routes: Sequence[Route], user_id: UUID | None, *, shared: bool) -> Slot | None:
        """Return where the response is kept; None if it is not kept."""
        seconds = seconds_kept(call.temperature) if self._is_enabled and call.cache else None
        if seconds is None or user_id is None:
            return None
        key = request_key(call, routes, None if shared else user_id)
        return None if key is None else Slot(key, seconds)

    def _keep(self, slot: Slot, dumped: bytes | None, response: ModelResponse) -> None:
        if dumped is not None and len(dumped) <= MAX_RESPONSE_BYTES and _is_usable(response):
            self._kept.add(slot.key, dumped, slot.seconds)

    async def _send(self, slot: Slot, user_id: UUID, ask: Ask) -> ModelResponse:
        flight = self._flights[slot.key] = _Flight(user_id)
        result: bytes | ModelError | None = None
        try:
            response = await _ask(ask, "miss")
            result = _dumped(response)
            self._keep(slot, result, response)
            return response
        except ModelError as error:
            result = error
            raise
        finally:
            # If this caller was cancelled, one of those that wait sends the request.
            del self._flights[slot.key]
            flight.result.set_result(result)


async def _ask(ask: Ask, outcome: str) -> ModelResponse:
    metrics.LLM_CACHE.labels(outcome).inc()
    return await ask()


def _is_usable(response: ModelResponse) -> bool:
    """Whether an agent can use the response, so that a retry after an empty one is sent to the model."""
    return bool(response.text or response.tool_calls)


def _dumped(response: ModelResponse) -> bytes | None:
    """Return the response as JSON, without its tokens; None if it contains half of a surrogate pair."""
    from pydantic_ai.messages import ModelMessagesTypeAdapter
    from pydantic_ai.usage import RequestUsage
    from pydantic_core import PydanticSerializationError

    try:
        return ModelMessagesTypeAdapter.dump_json([replace(response, usage=RequestUsage())])
    except PydanticSerializationError:
        return None


def _marked(response: bytes, mark: Mark) -> ModelResponse:
    from pydantic_ai.messages import ModelMessagesTypeAdapter, ModelResponse

    metrics.LLM_CACHE.labels(mark).inc()
    (loaded,) = ModelMessagesTypeAdapter.validate_json(response)
    if not isinstance(loaded, ModelResponse):
        raise TypeError("not a response of a model")
    loaded.metadata = {**(loaded.metadata or {}), MARK: mark}
    return loaded


def _shared(error: ModelError) -> ModelError:
    """Return a copy of the error for a call that made no request, and is charged no tokens."""
    copied = type(error).__new__(type(error), *error.args)
    vars(copied).update(vars(error) | {"input_tokens": 0, "output_tokens": 0})
    return copied
