"""Sign-in with an API key."""

from __future__ import annotations

from time import monotonic

from fastapi import Request

from bloxserver import api_key_format
from bloxserver.api.addresses import parse_address
from bloxserver.api.current_user import INVALID_KEY, OpenSession
from bloxserver.clock import now
from bloxserver.errors import Unauthorized
from bloxserver.models.database import release
from bloxserver.queries.api_keys import KeyAccess, find_access
from bloxserver.services.api_keys import note_use

MAX_AGE_SECONDS = 1.0
"""How long a key that was read is used. A key that is revoked on another process is accepted for as long."""
MAX_KNOWN = 10_000

_known: dict[bytes, tuple[float, KeyAccess]] = {}
"""Keys that were read, by their hashes, and when."""


async def find_key_access(request: Request, key: str, open_session: OpenSession) -> KeyAccess:
    """What a valid key gives access to. Raises `Unauthorized`, the same for unknown, revoked and expired keys."""
    access = await _read_access(request, key, open_session) if api_key_format.is_well_formed(key) else None
    if access is None or _has_expired(access):
        raise Unauthorized("invalid_api_key", INVALID_KEY)
    return access


async def _read_access(request: Request, key: str, open_session: OpenSession) -> KeyAccess | None:
    key_hash = api_key_format.hash_of(key)
    read_at, access = _known.get(key_hash, (-MAX_AGE_SECONDS, None))
    if access is not None and monotonic() - read_at < MAX_AGE_SECONDS:
        return access
    read_at = monotonic()  # before the statement, which may wait
    async with open_session() as session:
        access = await find_access(session, key_hash)
        if access is not None and not _has_expired(access) and await note_use(session, access, _address_of(request)):
            await release(session)  # the use counts, whatever becomes of the request
    _known.pop(key_hash, None)
    if access is not None:
        while len(_known) >= MAX_KNOWN:
            del _known[next(iter(_known))]
        _known[key_hash] = read_at, access
    return access


def forget_keys(*_: object) -> None:
    """Read all keys again, because one was revoked. The arguments are those of an event of SQLAlchemy."""
    _known.clear()


def _has_expired(access: KeyAccess) -> bool:
    return access.expires_at is not None and access.expires_at <= now()


def _address_of(request: Request) -> str | None:
    address = parse_address(request.client.host if request.client else None)
    return None if address is None else str(address)
