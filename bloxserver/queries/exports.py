"""All data of a user, in pages of limited size."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from pydantic.alias_generators import to_camel
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.enums import ActorKind
from bloxserver.models.tables import (
    AccountEmailRecord,
    ApiKeyRecord,
    AuditEventRecord,
    EmailCountRecord,
    ExecutionRecord,
    ExecutionStepRecord,
    FailureNotificationRecord,
    FlowRecord,
    FlowVarsRecord,
    FlowVersionRecord,
    KeyValueRecord,
    LlmCallRecord,
    ResumptionRecord,
    SecretRecord,
    SigningSecretRecord,
    TriggerRecord,
    UsageRecord,
    UserApiKeyRecord,
    UserRecord,
    WebhookDeliveryRecord,
)
from bloxserver.models.types import StoredJson, TierText, text_bytes

MAX_KEYS = 200
"""Rows of which one statement reads the keys and sizes."""
MAX_ROWS = 100
"""Rows that one statement reads. Their conversion takes a few milliseconds."""
MAX_BYTES = 2 * 1024 * 1024
"""The texts and JSON of the rows that one statement reads, unless it reads a single row."""
GROUP = 100
"""Executions, or triggers, whose rows are read together."""


class Owner(enum.Enum):
    """To what the rows of a part belong."""

    USER = enum.auto()
    FLOW = enum.auto()
    TRIGGER = enum.auto()
    EXECUTION = enum.auto()


def _read(column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    """The expression that reads the column."""
    if isinstance(column.type, sa.Enum | TierText):
        return sa.type_coerce(column, sa.String)  # a value of a newer version is unknown
    if column.table.name == AuditEventRecord.__tablename__ and column.name == "actor_id":
        # The name of an operator is not the user's data.
        return sa.case((column.table.c.actor == ActorKind.OPERATOR, None), else_=column)
    return column


def _size(columns: Sequence[sa.Column[Any]]) -> sa.Label[int]:
    """The bytes of the columns whose length is not limited."""
    long = [column for column in columns if isinstance(column.type, sa.Text | sa.JSON | StoredJson)]
    sizes: list[sa.ColumnElement[int]] = [sa.func.coalesce(text_bytes(sa.cast(column, sa.Text)), 0) for column in long]
    return sum(sizes, start=sa.literal(0)).label("size")


class Part:
    """The rows of a table that belong to a user. They become the file `name` of an export."""

    def __init__(
        self, name: str, record: type[Any], owner: Owner, owner_column: str, *order: str, hidden: Collection[str] = ()
    ) -> None:
        """`order` are the columns that order the rows of an owner. Together they are unique."""
        self.name = name
        self.table: sa.Table = record.__table__
        self.owner = owner
        self.owner_column = self.table.c[owner_column]
        self.key = (self.owner_column, *(self.table.c[column] for column in order))
        self.columns = {to_camel(column.name): _read(column) for column in self.table.c if column.name not in hidden}
        self.size = _size([column for column in self.table.c if column.name not in hidden])


class Key(NamedTuple):
    """The position of a row, and the bytes of its texts and JSON."""

    values: tuple[Any, ...]
    size: int


LEASES = ("lease", "lost_lease", "worker_id")
TOKENS = ("webhook_token", "previous_token", "webhook_url")
EXECUTIONS = Part("executions", ExecutionRecord, Owner.FLOW, "flow_id", "mode", "started_at", "id", hidden=LEASES)
TRIGGERS = Part("triggers", TriggerRecord, Owner.FLOW, "flow_id", "created_at", "id", hidden=TOKENS)
PARTS = (
    Part("profile", UserRecord, Owner.USER, "id"),
    Part("usage", UsageRecord, Owner.USER, "user_id", "period_start", "slot"),
    Part("emails", EmailCountRecord, Owner.USER, "user_id"),
    Part("llm_calls", LlmCallRecord, Owner.USER, "user_id", "created_at", "id"),
    Part("account_emails", AccountEmailRecord, Owner.USER, "user_id", "id"),
    Part("secrets", SecretRecord, Owner.USER, "user_id", "name", hidden=["ciphertext"]),
    Part("provider_keys", UserApiKeyRecord, Owner.USER, "user_id", "provider", hidden=["encrypted_key"]),
    Part("api_keys", ApiKeyRecord, Owner.USER, "user_id", "id", hidden=["key_hash"]),
    Part("audit_events", AuditEventRecord, Owner.USER, "user_id", "created_at", "id"),
    Part("flows", FlowRecord, Owner.FLOW, "id", hidden=["container_id"]),
    Part("versions", FlowVersionRecord, Owner.FLOW, "flow_id", "number"),
    TRIGGERS,
    Part("signing_secrets", SigningSecretRecord, Owner.TRIGGER, "trigger_id", "id", hidden=["ciphertext"]),
    Part("deliveries", WebhookDeliveryRecord, Owner.TRIGGER, "trigger_id", "id"),
    Part("schedule_notifications", FailureNotificationRecord, Owner.TRIGGER, "trigger_id", "id"),
    Part("budget_notifications", FailureNotificationRecord, Owner.FLOW, "flow_id", "id"),
    Part("vars", FlowVarsRecord, Owner.FLOW, "flow_id", "id"),
    Part("key_values", KeyValueRecord, Owner.FLOW, "flow_id", "key"),
    EXECUTIONS,
    Part("steps", ExecutionStepRecord, Owner.EXECUTION, "execution_id", "sequence", "id"),
    Part("resumptions", ResumptionRecord, Owner.EXECUTION, "execution_id", "listener"),
    Part("notifications", FailureNotificationRecord, Owner.EXECUTION, "execution_id", "id"),
)
"""The files of an export, in this order. Hashes, ciphertexts and tokens are hidden."""


async def read_keys(
    session: AsyncSession, part: Part, owners: Sequence[UUID], after: Key | None, limit: int = MAX_KEYS
) -> list[Key]:
    """The keys of the next rows of these owners."""
    wanted = _wanted(part, owners)
    if after is not None:
        wanted.append(sa.tuple_(*part.key) > _tuple(part, after))
    statement = sa.select(part.size, *part.key).where(*wanted).order_by(*part.key).limit(limit)
    return [Key(tuple(values), size) for size, *values in await session.execute(statement)]


def ranges_of(keys: Sequence[Key]) -> Iterator[tuple[Key, Key]]:
    """The first and the last key of each group of rows that one statement reads."""
    group: list[Key] = []
    for key in keys:
        if group and (len(group) == MAX_ROWS or sum(one.size for one in group) + key.size > MAX_BYTES):
            yield group[0], group[-1]
            group = []
        group.append(key)
    if group:
        yield group[0], group[-1]


async def read_rows(
    session: AsyncSession, part: Part, owners: Sequence[UUID], first: Key, last: Key
) -> Sequence[sa.Row[Any]]:
    """The rows from the first to the last of these keys."""
    key = sa.tuple_(*part.key)
    wanted = [*_wanted(part, owners), key >= _tuple(part, first), key <= _tuple(part, last)]
    columns = [column.label(name) for name, column in part.columns.items()]
    return (await session.execute(sa.select(*columns).where(*wanted).order_by(*part.key))).all()


def _wanted(part: Part, owners: Sequence[UUID]) -> list[sa.ColumnElement[bool]]:
    wanted: list[sa.ColumnElement[bool]] = [part.owner_column.in_(owners)]
    if "deleted_at" in part.table.c:
        wanted.append(part.table.c.deleted_at.is_(None))
    return wanted


def _tuple(part: Part, key: Key) -> sa.Tuple:
    return sa.tuple_(*(sa.literal(value, column.type) for column, value in zip(part.key, key.values, strict=True)))
