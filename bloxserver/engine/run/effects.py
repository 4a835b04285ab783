"""The effects of a block that runs in another process: requests, storage and calls of flows.

The process has no clients. A block that needs an effect is run again with the result: the process answers with the
first effect without a result, this process carries it out, and the next run has its result. A block must therefore
request the same effects in every run; the clock stands still for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pydantic import JsonValue

from bloxserver.blocks.base import BlockContext, BlockError
from bloxserver.clients.errors import OutgoingRequestError
from bloxserver.clients.http import HttpResponse


@dataclass(frozen=True)
class Effect:
    """What the block needs. `content` is the body of a request."""

    kind: str
    arguments: dict[str, Any]
    content: bytes = b""


@dataclass(frozen=True)
class EffectResult:
    """The result of an effect, or its error."""

    value: Any
    content: bytes = b""
    error: dict[str, Any] | None = None


class EffectNeeded(BaseException):
    """The block needs an effect that has no result. Not an `Exception`, so that no block handles it."""

    def __init__(self, effect: Effect) -> None:
        super().__init__(effect.kind)
        self.effect = effect


class RecordedEffects:
    """The clients of a block in the other process: they return the results of earlier runs in their order."""

    def __init__(self, results: Sequence[EffectResult], sender: str | None) -> None:
        self._results = iter(results)
        self.sender = sender
        """The sender of mail, of the settings."""

    def _result(self, effect: Effect) -> EffectResult:
        result = next(self._results, None)
        if result is None:
            raise EffectNeeded(effect)
        return result

    async def request(
        self,
        method: str,
        url: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> HttpResponse:
        """As `GuardedClient.request`."""
        arguments = {"method": method, "url": url, "headers": dict(headers or {}), "has_content": content is not None}
        result = self._result(Effect("http", arguments | {"options": options}, content or b""))
        if result.error is not None:
            raise _outgoing_error(result.error)
        body = result.value.pop("body_error")
        return HttpResponse(**result.value, body=result.content if body is None else _outgoing_error(body))

    async def send(self, *_: object, **__: object) -> list[str]:
        """Mail is composed and sent in the other process only: see `RENDERED_ONLY`."""
        raise BlockError("payload_too_large", "the message is too large for a block that sends mail", retryable=False)

    async def call(self, flow: str, payload: JsonValue, target: str | None) -> UUID:
        """As `FlowCaller.call`."""
        return UUID(self._stored("flow", {"flow": flow, "payload": payload, "target": target}))

    async def get(self, key: str) -> tuple[bool, JsonValue]:
        return tuple(self._stored("get", {"key": key}))

    async def set(self, key: str, value: JsonValue) -> None:
        self._stored("set", {"key": key, "value": value})

    async def delete(self, key: str) -> bool:
        return bool(self._stored("delete", {"key": key}))

    async def add(self, key: str, value: JsonValue) -> tuple[bool, JsonValue]:
        return tuple(self._stored("add", {"key": key, "value": value}))

    async def increment(self, key: str, by: float) -> float:
        return float(self._stored("increment", {"key": key, "by": by}))

    def _stored(self, kind: str, arguments: dict[str, Any]) -> Any:
        result = self._result(Effect(kind, arguments))
        if result.error is not None:
            raise BlockError(result.error["code"], result.error["message"], retryable=result.error["retryable"])
        return result.value


async def carry_out(effect: Effect, context: BlockContext) -> EffectResult:
    """Carry out an effect with the clients of this process."""
    try:
        match effect.kind:
            case "http":
                return await _send_request(effect, context)
            case "flow":
                return EffectResult(str(await context.flows.call(**effect.arguments)))
            case "get" | "set" | "delete" | "add" | "increment":
                return EffectResult(await getattr(context.store, effect.kind)(**effect.arguments))
            case _:
                raise BlockError("internal_error", "unknown effect", retryable=False)
    except (BlockError, OutgoingRequestError) as error:
        return EffectResult(None, error=_error(error))


async def _send_request(effect: Effect, context: BlockContext) -> EffectResult:
    given = effect.arguments
    response = await context.http.request(
        given["method"],
        given["url"],
        headers=given["headers"],
        content=effect.content if given["has_content"] else None,
        **given["options"],
    )
    value = {
        "status": response.status,
        "headers": dict(response.headers),
        "cookies": [*response.cookies],
        "url": response.url,
        "max_bytes": response.max_bytes,
        "body_error": None,
    }
    try:
        return EffectResult(value, response.received)
    except OutgoingRequestError as error:
        return EffectResult(value | {"body_error": _error(error)})


def _error(error: BlockError | OutgoingRequestError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "retryable": error.retryable}


def _outgoing_error(error: dict[str, Any]) -> OutgoingRequestError:
    return OutgoingRequestError(error["code"], error["message"])
