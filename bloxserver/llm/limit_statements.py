"""The statements that count calls. They are cached: building one takes longer than executing it."""

from __future__ import annotations

from functools import cache
from typing import Any

import sqlalchemy as sa

from bloxserver.llm.limits import Reservation
from bloxserver.models.tables import LlmReservationRecord, LlmWindowRecord
from bloxserver.models.upsert import insert_on
from bloxserver.plans import Plan

_windows, _reservations = (kind.metadata.tables[kind.__tablename__] for kind in (LlmWindowRecord, LlmReservationRecord))
COLUMNS = ("id", "user_id", "minute", "tokens", "expires_at")


def parameters_of(reservation: Reservation, plan: Plan) -> dict[str, Any]:
    """Return the parameters of `count`, `insert`, `count_and_insert` and `read`."""
    return {f"new_{name}": getattr(reservation, name) for name in COLUMNS} | {
        "max_requests": plan.llm_requests_per_minute,
        "max_tokens": plan.llm_tokens_per_minute,
        "max_active": plan.llm_concurrent,
    }


@cache
def count(dialect: str) -> Any:
    """Count a reservation unless a limit is reached. Returns what is used then, or no row."""
    used = _used()
    tokens = used["tokens"] + _new("tokens")
    new = {"user_id": _new("user_id"), "minute": _new("minute"), "requests": 1, "tokens": _new("tokens"), "active": 1}
    return (
        insert_on(dialect, _windows)
        .values(new)
        .on_conflict_do_update(
            index_elements=[_windows.c.user_id],
            set_={
                "minute": sa.case((_is_current(), _windows.c.minute), else_=_new("minute")),
                "requests": used["requests"] + 1,
                "tokens": tokens,
                "active": used["active"] + 1,
            },
            where=sa.and_(
                used["requests"] < _number("max_requests"),
                tokens <= _number("max_tokens"),
                used["active"] < _number("max_active"),
            ),
        )
        .returning(_windows.c.requests, _windows.c.tokens, _windows.c.active)
    )


@cache
def insert() -> sa.Executable:
    """Insert a reservation that was counted."""
    return sa.insert(_reservations).values({name: _new(name) for name in COLUMNS})


@cache
def count_and_insert() -> sa.Executable:
    """Both in one statement, which SQLite does not support. A second one would need another round trip."""
    counted = count("postgresql").cte("counted")
    return (
        sa.insert(_reservations)
        .from_select(COLUMNS, sa.select(*map(_new, COLUMNS)).select_from(counted))
        .returning(*(sa.select(column).scalar_subquery() for column in counted.c))
    )


@cache
def read() -> sa.Executable:
    """Read what is used: requests, tokens, and active calls."""
    return sa.select(*_used().values()).where(_windows.c.user_id == _new("user_id"))


@cache
def delete_ended(dialect: str) -> sa.Executable:
    """Delete the reservations with these `ids`. Returns those that existed."""
    kind = _reservations.c.id.type
    if dialect == "postgresql":
        # With an expanded list, each number of ids is a statement of its own, which PostgreSQL has to prepare.
        is_ended = _reservations.c.id == sa.any_(sa.bindparam("ids", type_=sa.ARRAY(kind)))
    else:
        is_ended = _reservations.c.id.in_(sa.bindparam("ids", expanding=True, type_=kind))
    columns = (_reservations.c[name] for name in ("id", "user_id", "minute", "tokens"))
    return sa.delete(_reservations).where(is_ended).returning(*columns)


@cache
def delete_expired(*, of_one_user: bool) -> sa.Executable:
    """Delete reservations that have expired at `moment`, of `user` or of all. Returns their users and minutes."""
    conditions = [_reservations.c.expires_at <= sa.bindparam("moment", type_=_reservations.c.expires_at.type)]
    if of_one_user:
        conditions.append(_reservations.c.user_id == sa.bindparam("user", type_=_reservations.c.user_id.type))
    return sa.delete(_reservations).where(*conditions).returning(_reservations.c.user_id, _reservations.c.minute)


@cache
def end() -> sa.Executable:
    """Take `ended_number` reservations of a minute from the counts of a user, and add `ended_tokens` to its tokens."""
    active, minute = _windows.c.active, sa.bindparam("ended_minute", type_=_windows.c.minute.type)
    number, tokens = _number("ended_number"), _number("ended_tokens")
    return (
        sa.update(_windows)
        .where(_windows.c.user_id == sa.bindparam("ended_user", type_=_windows.c.user_id.type))
        .values(
            active=sa.case((active > number, active - number), else_=0),
            tokens=sa.case((_windows.c.minute == minute, _windows.c.tokens + tokens), else_=_windows.c.tokens),
        )
    )


def _new(name: str) -> sa.BindParameter[Any]:
    return sa.bindparam(f"new_{name}", type_=_reservations.c[name].type)


def _number(name: str) -> sa.BindParameter[int]:
    return sa.bindparam(name, type_=sa.BigInteger())


def _is_current() -> sa.ColumnElement[bool]:
    return _windows.c.minute >= _new("minute")


def _used() -> dict[str, sa.ColumnElement[int]]:
    """What is used in the minute of the reservation, and by calls of any minute that have not ended."""
    columns = _windows.c
    in_minute = {name: sa.case((_is_current(), columns[name]), else_=0) for name in ("requests", "tokens")}
    return {**in_minute, "active": columns.active}
