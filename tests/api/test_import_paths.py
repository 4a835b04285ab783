"""Names that third-party tests import."""

from __future__ import annotations

import importlib
from enum import StrEnum
from types import ModuleType

import pytest
import sqlalchemy as sa
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel

from bloxserver.api import schemas
from bloxserver.api.main import app
from bloxserver.api.models import database, tables
from bloxserver.api.schemas import CamelModel
from tests.api.contract import covers

RECORDS = [
    "UserRecord",
    "FlowRecord",
    "TriggerRecord",
    "ExecutionRecord",
    "UsageRecord",
    "UserApiKeyRecord",
    "StripeEventRecord",
]
ENUMS = ["Tier", "BillingStatus", "FlowStatus", "TriggerType", "ExecutionStatus"]
MODELS = [
    "Flow",
    "FlowSummary",
    "Trigger",
    "Execution",
    "ExecutionSummary",
    "PaginatedResponse",
    "FlowStats",
    "ApiError",
    "User",
    "UsageDashboard",
    "CanvasState",
    "CanvasNode",
    "CanvasEdge",
    "CreateFlowRequest",
    "UpdateFlowRequest",
    "CreateTriggerRequest",
    "ApiKeyInfo",
    "AddApiKeyRequest",
    "CamelModel",
]


@covers("imports.main", "imports.dependencies", "imports.database", "imports.models", "imports.tables")
@covers("imports.schemas", "imports.routes")
@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("main", ["app"]),
        (
            "dependencies",
            [
                "AuthenticatedUser",
                "DbSession",
                "CurrentUser",
                "get_current_user",
                "get_optional_user",
                "OptionalUser",
                "require_tier",
                "RequirePro",
                "RequireEnterprise",
                "validate_clerk_token",
            ],
        ),
        ("models.database", ["Base", "get_db", "get_db_context", "init_db", "engine", "async_session_maker"]),
        ("models", ["Base", "get_db", "init_db", *RECORDS]),
        ("models.tables", [*RECORDS, *ENUMS]),
        ("schemas", [*MODELS, *ENUMS]),
        *[(f"routes.{name}", ["router"]) for name in ("flows", "triggers", "executions", "webhooks", "health")],
    ],
)
def test_names_can_be_imported(module: str, names: list[str]) -> None:
    found = importlib.import_module(f"bloxserver.api.{module}")
    assert [name for name in names if not hasattr(found, name)] == []


@covers("imports.main", "imports.routes", "imports.schemas", "imports.tables", "imports.models")
def test_names_have_the_expected_types() -> None:
    assert isinstance(app, FastAPI)
    for name in ("flows", "triggers", "executions", "webhooks", "health"):
        assert isinstance(importlib.import_module(f"bloxserver.api.routes.{name}").router, APIRouter)
    for name in MODELS:
        assert issubclass(getattr(schemas, name), CamelModel if name != "CamelModel" else BaseModel)
    for name in RECORDS:
        record = getattr(tables, name)
        assert issubclass(record, database.Base)
        assert getattr(importlib.import_module("bloxserver.api.models"), name) is record
    for name in ENUMS:
        assert issubclass(getattr(tables, name), StrEnum)
        assert getattr(schemas, name) is getattr(tables, name)


@covers("imports.database", "imports.tables")
@pytest.mark.parametrize("module", [database, tables])
def test_modules_of_the_contract_re_export_the_same_objects(module: ModuleType) -> None:
    origin = importlib.import_module(module.__name__.replace("bloxserver.api.", "bloxserver."))
    assert module.__all__
    for name in module.__all__:
        assert getattr(module, name) is getattr(origin, name), name


@covers("enums")
@pytest.mark.parametrize(
    ("enum", "values"),
    [
        (tables.Tier, "free pro enterprise high_frequency"),
        (tables.BillingStatus, "active trialing past_due canceled canceling"),
        (tables.FlowStatus, "stopped starting running stopping error"),
        (tables.TriggerType, "webhook schedule manual"),
        (tables.ExecutionStatus, "running success error timeout cancelled"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_enum_members_are_the_upper_case_of_their_values(enum: type[StrEnum], values: str) -> None:
    assert {member.name: member.value for member in enum} == {value.upper(): value for value in values.split()}
    assert {value: str(enum(value)) for value in values.split()} == {value: value for value in values.split()}
    assert enum(values.split()[0]) == values.split()[0]


@covers("json.camel-case", "json.snake-case-in")
def test_schemas_write_camel_case_and_accept_snake_case() -> None:
    class Example(CamelModel):
        one_word: int

    assert Example(one_word=1).model_dump(by_alias=True) == {"oneWord": 1}
    assert Example.model_validate({"oneWord": 1, "more": 2}) == Example.model_validate({"one_word": 1})


@covers("imports.database")
async def test_database_names_use_the_database_of_the_running_app() -> None:
    await database.init_db()
    try:
        async with database.get_db_context() as session:
            session.add(tables.UserRecord(clerk_id="user_1"))
        async with database.async_session_maker() as other:
            assert list(await other.scalars(sa.select(tables.UserRecord.clerk_id))) == ["user_1"]
        async with database.engine.connect() as connection:
            assert await connection.scalar(sa.select(sa.func.count()).select_from(tables.UserRecord)) == 1
        sessions = database.get_db()
        session = await anext(sessions)
        assert await session.scalar(sa.select(tables.UserRecord.clerk_id)) == "user_1"
        await sessions.aclose()  # type: ignore[attr-defined]
    finally:
        await database.engine.dispose()
