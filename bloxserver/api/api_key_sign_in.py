"""Sign-in with an API key."""

from __future__ import annotations

from time import monotonic

import structlog
from fastapi import Request

from bloxserver import api_key_format
from bloxserver.api.addresses import client_address
from bloxserver.api.current_user import INVALID_KEY
from bloxserver.api.session_source import SessionSource
from bloxserver.clock import now
from bloxserver.errors import Unauthorized
from bloxserver.models.database import release
from bloxserver.models.transient_errors import is_transient
from bloxserver.queries.api_keys import KeyAccess, find_access
from bloxserver.services.api_keys import note_use

log = structlog.stdlib.get_logger("bloxserver.request")

MAX_AGE_SECONDS = 1.0
"""How long a key that was read is used. A key that is revoked on another process is accepted for as long."""
MAX_KNOWN = 10_000

_known: dict[bytes, tuple[float, KeyAccess]] = {}
"""Keys that were read, by their hashes, and when."""


async def find_key_access(request: Request, key: str) -> KeyAccess:
    """What a valid key gives access to. Raises `Unauthorized`, the same for unknown, revoked and expired keys."""
    access = await _read_access(request, key) if api_key_format.is_well_formed(key) else None
    if access is None or _has_expired(access):
        raise Unauthorized("invalid_api_key", INVALID_KEY)
    return access


async def _read_access(request: Request, key: str) -> KeyAccess | None:
    key_hash = api_key_format.hash_of(key)
    read_at, access = _known.get(key_hash, (-MAX_AGE_SECONDS, None))
    if access is not None and monotonic() - read_at < MAX_AGE_SECONDS:
        return access
    read_at = monotonic()  # before the statement, which may wait
    async with SessionSource(request).reading() as session:
        access = await find_access(session, key_hash)
    _known.pop(key_hash, None)
    if access is not None:
        while len(_known) >= MAX_KNOWN:
            del _known[next(iter(_known))]
        _known[key_hash] = read_at, access
        if not _has_expired(access):
            await _note_use(request, access)
    return access


async def _note_use(request: Request, access: KeyAccess) -> None:
    """Store the use in a transaction of its own: it counts whatever becomes of the request, and holds no lock."""
    try:
        async with SessionSource(request).reading() as session:
            if await note_use(session, access, client_address(request.scope)):
                await release(session)
    except Exception as error:
        if not is_transient(error):
            raise
        log.warning("use of an API key not stored", error=type(error).__name__)


def forget_keys(*_: object) -> None:
    """Read all keys again, because one was revoked. The arguments are those of an event of SQLAlchemy."""
    _known.clear()


def _has_expired(access: KeyAccess) -> bool:
    return access.expires_at is not None and access.expires_at <= now()
