"""The data of a user as a ZIP of JSON files, which is written while it is sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import date, datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from bloxserver.api.session_source import SessionSource
from bloxserver.clock import iso_utc
from bloxserver.queries.exports import (
    EXECUTIONS,
    GROUP,
    MAX_KEYS,
    PARTS,
    TRIGGERS,
    Key,
    Owner,
    Part,
    ranges_of,
    read_keys,
    read_rows,
)
from bloxserver.queries.flows import read_flow_ids
from bloxserver.raw_json import RawJson

PART_CHARACTERS = 32 * 1024
"""About a millisecond to write and compress."""
LEVEL = 1
"""Of the compression. Higher levels take several times as long for little."""


class _Sink:
    """What the ZIP writes to: it keeps the bytes until they are sent. It cannot seek."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Does nothing."""

    def take(self) -> bytes:
        written = b"".join(self._parts)
        self._parts.clear()
        return written


class AccountExport:
    """Reads and writes the export of a user, in parts. It holds a database connection only while it reads a page."""

    def __init__(self, sessions: SessionSource, user_id: UUID) -> None:
        self._sessions = sessions
        self._user_id = user_id

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes of the ZIP."""
        from zipfile import ZIP_DEFLATED, ZipFile  # imported here, because few requests need it

        sink = _Sink()
        with ZipFile(sink, "w", ZIP_DEFLATED, compresslevel=LEVEL) as archive:  # type: ignore[call-overload]
            for part in PARTS:
                with archive.open(f"{part.name}.json", "w", force_zip64=True) as file:
                    async for text in _joined(self._array(part)):
                        file.write(text.encode())
                        yield sink.take()
                        await asyncio.sleep(0)  # other requests continue
        yield sink.take()

    async def _array(self, part: Part) -> AsyncIterator[str]:
        """The texts of a JSON array with a line for each row."""
        separator = "[\n"
        async for rows in self._pages(part):
            for row in rows:
                yield separator
                for text in _row_texts(row):
                    yield text
                separator = ",\n"
        yield "[]\n" if separator == "[\n" else "\n]\n"

    async def _pages(self, part: Part) -> AsyncIterator[Sequence[sa.Row[Any]]]:
        async for owners in self._owners(part.owner):
            async for keys in self._key_pages(part, owners):
                for first, last in ranges_of(keys):
                    async with self._sessions.reading() as session:
                        rows = await read_rows(session, part, owners, first, last)
                    yield rows

    async def _owners(self, owner: Owner) -> AsyncIterator[Sequence[UUID]]:
        """Groups of ids to which the rows of a part belong."""
        if owner is Owner.USER:
            yield [self._user_id]
            return
        async with self._sessions.reading() as session:
            flow_ids = await read_flow_ids(session, self._user_id)
        for flow_id in flow_ids:
            if owner is Owner.FLOW:
                yield [flow_id]
                continue
            part = EXECUTIONS if owner is Owner.EXECUTION else TRIGGERS
            async for keys in self._key_pages(part, [flow_id], GROUP):
                yield [key.values[-1] for key in keys]

    async def _key_pages(self, part: Part, owners: Sequence[UUID], limit: int = MAX_KEYS) -> AsyncIterator[list[Key]]:
        after: Key | None = None
        while True:
            async with self._sessions.reading() as session:
                keys = await read_keys(session, part, owners, after, limit)
            if keys:
                yield keys
            if len(keys) < limit:
                return
            after = keys[-1]


async def _joined(texts: AsyncIterator[str]) -> AsyncIterator[str]:
    """The same text in parts that are worth writing."""
    parts: list[str] = []
    length = 0
    async for text in texts:
        parts.append(text)
        length += len(text)
        if length >= PART_CHARACTERS:
            yield "".join(parts)
            parts, length = [], 0
    yield "".join(parts)


def _row_texts(row: sa.Row[Any]) -> Iterator[str]:
    """The JSON object of a row. A long value is divided."""
    separator = "{"
    for name, value in row._mapping.items():
        yield f'{separator}"{name}": '
        yield from _value_texts(value)
        separator = ", "
    yield "}"


def _value_texts(value: Any) -> Iterator[str]:
    if isinstance(value, RawJson):
        yield from _slices(value.text)
    elif isinstance(value, str):
        yield '"'
        for text in _slices(value):
            yield json.dumps(text, ensure_ascii=False)[1:-1]
        yield '"'
    else:
        yield json.dumps(value, ensure_ascii=False, default=_plain)


def _slices(text: str) -> Iterator[str]:
    return (text[begin : begin + PART_CHARACTERS] for begin in range(0, len(text), PART_CHARACTERS))


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return iso_utc(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON")
