"""The `Idempotency-Key` of requests that create something."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from operator import attrgetter
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request, Response

from bloxserver.api.dependencies import AuthenticatedUser, DbSession
from bloxserver.api.json_bodies import sent_body
from bloxserver.services.idempotency import HEADER, claim_key, find_result, require_valid_key, set_result

Created = TypeVar("Created")
REPLAYED = {"Idempotent-Replayed": "true"}
"""The header of a response to a repeated request."""


IdempotencyHeader = Annotated[
    str | None,
    Header(
        alias=HEADER,
        description="A key that the client chooses. A repeated request with the same key creates nothing, and its "
        "response has what the first request created, without secrets, and the header `Idempotent-Replayed`. Keys are "
        "kept for 7 days. The same key with another request is 422.",
        json_schema_extra={"minLength": 1, "pattern": r"\S"},
    ),
]


async def idempotency_key(key: IdempotencyHeader = None) -> str | None:
    """The key of the request. Raises `Unprocessable` if it is empty."""
    if key is not None:
        require_valid_key(key)
    return key


IdempotencyKey = Annotated[str | None, Depends(idempotency_key)]


class IdempotentRequest:
    """A request that creates something once, if it has an `Idempotency-Key`."""

    def __init__(
        self, request: Request, user: AuthenticatedUser, session: DbSession, response: Response, key: IdempotencyKey
    ) -> None:
        self._request = request
        self._user = user
        self._session = session
        self._response = response
        self._key = key

    async def create(
        self,
        create: Callable[[], Awaitable[Created]],
        read: Callable[[str], Awaitable[Created]],
        name: Callable[[Created], Any] = attrgetter("id"),
        prepare: Callable[[], Awaitable[None]] | None = None,
    ) -> Created:
        """Create a resource, or read what an earlier request with the same key created.

        `name` returns what `read` gets as a text. `prepare` is called before the key is claimed, and may end the
        transaction; not for a repeated request. Raises `KeyReused` if the key was used for another request.
        """
        if prepare is not None and not await self._is_repeated():
            await prepare()
        if self._key is None:
            return await create()
        found = await claim_key(self._session, self._user.id, self._key, await self._identity())
        if found is not None:
            self._response.headers.update(REPLAYED)
            return await read(found)
        created = await create()
        await set_result(self._session, self._user.id, self._key, str(name(created)))
        return created

    async def _is_repeated(self) -> bool:
        if self._key is None:
            return False
        return await find_result(self._session, self._user.id, self._key, await self._identity()) is not None

    async def _identity(self) -> bytes:
        """What a repeated request has in common with the first: method, path, query and body."""
        url = self._request.url
        return f"{self._request.method} {url.path}?{url.query}\n".encode() + await sent_body(self._request)


async def _idempotent_request(
    request: Request, user: AuthenticatedUser, session: DbSession, response: Response, key: IdempotencyKey
) -> IdempotentRequest:
    return IdempotentRequest(request, user, session, response, key)


Idempotent = Annotated[IdempotentRequest, Depends(_idempotent_request)]
