"""The key-value store of flows, which keeps values between executions, within limits.

Every write locks the flow's row, so limits are exact and no increment is lost. Every write records the step that made
it: when a step is repeated after a crash, its write is not applied twice.
"""

from __future__ import annotations

import base64
import json
from hashlib import sha256
from typing import NamedTuple, TypeGuard
from uuid import UUID

import sqlalchemy as sa
from pydantic import JsonValue
from pydantic_core import PydanticCustomError
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.errors import BadRequest, Forbidden, NotFound
from bloxserver.models.enums import Tier
from bloxserver.models.tables import FlowRecord, KeyValueRecord, UserRecord
from bloxserver.models.upsert import insert_into
from bloxserver.plans import get_plan
from bloxserver.queries.usage import stored_bytes_of
from bloxserver.services.usage import require_storage
from bloxserver.storable import check_storable

MAX_KEY_LENGTH = 255
MAX_VALUE_BYTES = 64 * 1024
MAX_KEYS = 1_000
"""Keys of one flow."""
MAX_BYTES = 4 * 1024 * 1024
"""Bytes of all keys and values of one flow."""
MAX_NUMBER = 1e300

MARK_LENGTH = 8
MARKS_KEPT = 40
"""The number of writers recorded for a key. A repeated step is detected unless this many other steps wrote since."""


class _Entry(NamedTuple):
    value: JsonValue
    size: int
    marks: str


async def get_value(session: AsyncSession, flow_id: UUID, key: str) -> tuple[bool, JsonValue]:
    """Whether the key has a value, and the value. Raises `BadRequest` for an invalid key."""
    entry = await _find(session, flow_id, _checked(key))
    return (False, None) if entry is None else (True, entry.value)


async def set_value(session: AsyncSession, flow_id: UUID, key: str, value: JsonValue, step: str) -> None:
    """Create or replace a value.

    Raises `BadRequest`, `Forbidden` (`key_value_limit`, `stored_bytes_limit_reached`), and `NotFound` for the flow.
    """
    entry = await _lock(session, flow_id, key)
    await _write(session, flow_id, key, entry, value, step)


async def delete_value(session: AsyncSession, flow_id: UUID, key: str) -> bool:
    """Delete a value. Returns whether it existed. Raises `BadRequest`."""
    deleted = await session.execute(
        sa.delete(KeyValueRecord)
        .where(KeyValueRecord.flow_id == flow_id, KeyValueRecord.key == _checked(key))
        .returning(KeyValueRecord.key)
    )
    return deleted.first() is not None


async def add_value(
    session: AsyncSession, flow_id: UUID, key: str, value: JsonValue, step: str
) -> tuple[bool, JsonValue]:
    """Set the value if the key has none. Returns whether this step set it, and the value. Raises like `set_value`."""
    entry = await _lock(session, flow_id, key)
    if entry is not None:
        return _has_written(entry, step), entry.value
    await _write(session, flow_id, key, None, value, step)
    return True, value


async def increment_value(session: AsyncSession, flow_id: UUID, key: str, by: float, step: str) -> float:
    """Add to the number, once per step. Returns the sum.

    Raises like `set_value`, and `BadRequest` (`key_value_no_number`) if the stored value is not a number.
    """
    if not _is_number(by):
        raise BadRequest("key_value_no_number", "The value to add must be a number")
    entry = await _lock(session, flow_id, key)
    current = 0 if entry is None else entry.value
    if not _is_number(current):
        raise BadRequest("key_value_no_number", "The stored value is not a number")
    if entry is not None and _has_written(entry, step):
        return current
    total = current + by
    if not _is_number(total):
        raise BadRequest("key_value_no_number", "The sum is too large")
    await _write(session, flow_id, key, entry, total, step)
    return total


async def _find(session: AsyncSession, flow_id: UUID, key: str) -> _Entry | None:
    row = (
        await session.execute(
            sa.select(KeyValueRecord.value, KeyValueRecord.size, KeyValueRecord.written_by).where(
                KeyValueRecord.flow_id == flow_id, KeyValueRecord.key == key
            )
        )
    ).first()
    return None if row is None else _Entry(json.loads(row.value), row.size, row.written_by or "")


async def _lock(session: AsyncSession, flow_id: UUID, key: str) -> _Entry | None:
    """Lock the flow's row, and read the entry."""
    _checked(key)
    flow = sa.select(FlowRecord.id).where(FlowRecord.id == flow_id, FlowRecord.deleted_at.is_(None))
    flow = flow.with_for_update(key_share=True)
    if await session.scalar(flow) is None:
        raise NotFound("Flow")
    return await _find(session, flow_id, key)


async def _write(
    session: AsyncSession, flow_id: UUID, key: str, entry: _Entry | None, value: JsonValue, step: str
) -> None:
    text = _stored(value)
    size = len(key.encode()) + len(text.encode())
    if entry is None or size > entry.size:
        await _require_room(session, flow_id, size - (entry.size if entry else 0), is_new=entry is None)
    marks = (_mark(step) + (entry.marks if entry else ""))[: MARK_LENGTH * MARKS_KEPT]
    values = {"value": text, "size": size, "written_by": marks, "updated_at": now()}
    await session.execute(
        insert_into(session, KeyValueRecord)
        .values(flow_id=flow_id, key=key, **values)
        .on_conflict_do_update(index_elements=[KeyValueRecord.flow_id, KeyValueRecord.key], set_=values)
    )


async def _require_room(session: AsyncSession, flow_id: UUID, more: int, *, is_new: bool) -> None:
    """Raise `Forbidden` if the flow or its owner has no room for `more` bytes."""
    room = (
        sa.select(
            sa.func.count(KeyValueRecord.key).label("keys"),
            sa.func.coalesce(sa.func.sum(KeyValueRecord.size), 0).label("size"),
            UserRecord.tier,
            UserRecord.limits,
            stored_bytes_of(UserRecord.id).label("stored_bytes"),
        )
        .select_from(FlowRecord)
        .join(UserRecord, UserRecord.id == FlowRecord.user_id)
        .outerjoin(KeyValueRecord, KeyValueRecord.flow_id == FlowRecord.id)
        .where(FlowRecord.id == flow_id)
        .group_by(UserRecord.id)
    )
    used = (await session.execute(room)).one()
    require_storage(get_plan(used.tier or Tier.FREE, used.limits), used.stored_bytes)
    if is_new and used.keys >= MAX_KEYS:
        raise _over_limit(f"a flow may have {MAX_KEYS} keys", MAX_KEYS)
    if used.size + more > MAX_BYTES:
        raise _over_limit(f"the keys and values of a flow may have {MAX_BYTES} bytes", MAX_BYTES)


def _over_limit(reason: str, limit: int) -> Forbidden:
    return Forbidden("key_value_limit", f"Limit reached: {reason}", details={"limit": limit})


def _checked(key: str) -> str:
    if not 1 <= len(key) <= MAX_KEY_LENGTH or not key.isprintable():
        raise BadRequest("key_value_invalid", f"A key has 1 to {MAX_KEY_LENGTH} printable characters")
    return key


def _stored(value: JsonValue) -> str:
    """The value as JSON text."""
    try:
        check_storable(value)
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except PydanticCustomError as error:
        raise BadRequest("key_value_invalid", f"The value cannot be stored: {error.message()}") from None
    except ValueError:
        raise BadRequest("key_value_invalid", "The value cannot be stored: a number has too many digits") from None
    if len(text.encode()) > MAX_VALUE_BYTES:
        raise _over_limit(f"a value may have {MAX_VALUE_BYTES} bytes of JSON", MAX_VALUE_BYTES)
    return text


def _is_number(value: JsonValue) -> TypeGuard[int | float]:
    """Whether the value is a finite number, and no boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER


def _mark(step: str) -> str:
    return base64.urlsafe_b64encode(sha256(step.encode()).digest()).decode()[:MARK_LENGTH]


def _has_written(entry: _Entry, step: str) -> bool:
    starts = range(0, len(entry.marks), MARK_LENGTH)
    return _mark(step) in (entry.marks[start : start + MARK_LENGTH] for start in starts)
