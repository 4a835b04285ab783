"""Cursors: opaque positions in lists."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from random import Random
from uuid import UUID, uuid4

import pytest

from bloxserver.errors import BadRequest
from bloxserver.queries.cursors import (
    MAX_CURSOR_LENGTH,
    Position,
    read_cursor,
    read_number_cursor,
    write_cursor,
    write_number_cursor,
)

POSITION = Position(datetime(2024, 5, 1, 12, 0, 0, 123456, tzinfo=UTC), UUID(int=7))


@pytest.mark.parametrize("year", [1, 1969, 2024, 9999])
def test_cursor_keeps_time_and_id(year: int) -> None:
    position = Position(datetime(year, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), uuid4())
    cursor = write_cursor(position, "list")
    assert read_cursor(cursor, "list") == position
    assert len(cursor) <= MAX_CURSOR_LENGTH


def test_changed_cursor_and_cursor_of_another_list_are_invalid() -> None:
    cursor = write_cursor(POSITION, "list")
    chance = Random(4)  # noqa: S311
    texts = ["", "=", "é", "\ud800", "\0", "A" * 44, cursor + "A", cursor + "====", cursor[:-4], f" {cursor}", "2"]
    texts += [cursor.replace("=", ""), cursor.swapcase(), cursor + "\n", f"!{cursor}"]
    texts += ["".join(chr(chance.randrange(1, 0x2FF)) for _ in range(chance.randrange(60))) for _ in range(300)]
    texts += [urlsafe_b64encode(chance.randbytes(chance.randrange(40))).decode() for _ in range(300)]
    texts += [urlsafe_b64encode(b"\x7f" + b"\xff" * 31).decode(), urlsafe_b64encode(b"\x80" + bytes(31)).decode()]
    for text, name in [(cursor, "other list"), *((text, "list") for text in texts)]:
        with pytest.raises(BadRequest) as error:
            read_cursor(text, name)
        assert (error.value.code, error.value.status) == ("invalid_cursor", 400)


def test_positions_that_differ_by_a_microsecond_have_different_cursors() -> None:
    later = POSITION._replace(started_at=POSITION.started_at + timedelta(microseconds=1))
    assert write_cursor(POSITION, "list") != write_cursor(later, "list")


@pytest.mark.parametrize("number", [0, 7, 2**63 - 1, -(2**63)])
def test_cursor_keeps_number_and_id(number: int) -> None:
    id = uuid4()
    cursor = write_number_cursor(number, id, "list")
    assert read_number_cursor(cursor, "list") == (number, id)
    with pytest.raises(BadRequest):
        read_number_cursor(cursor, "other list")
