"""Query parameters that are read as one model."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Query
from pydantic import BaseModel, Field

from bloxserver.api.errors import install_error_handlers
from bloxserver.api.query_models import query_document, query_reader


class Color(StrEnum):
    RED = "red"
    BLUE = "blue"


class Wanted(BaseModel):
    color: list[Color] = Field([], description="Colors.")
    size: int | None = Field(None, ge=1, description="A size.")
    begin: str = Field("x", alias="from", max_length=3, description="A text.")


app = FastAPI()
install_error_handlers(app)


@app.get("/ours", openapi_extra=query_document(Wanted))
async def ours(query: Annotated[Wanted, Depends(query_reader(Wanted))]) -> dict[str, Any]:
    return query.model_dump()


@app.get("/theirs")
async def theirs(query: Annotated[Wanted, Query()]) -> dict[str, Any]:
    return query.model_dump()


async def sent(path: str, query: str) -> tuple[int, Any]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        response = await client.get(f"{path}?{query}")
    return response.status_code, response.json().get("details") or response.json()


@pytest.mark.parametrize(
    "query",
    [
        "",
        "color=red",
        "color=red&color=blue&size=3&from=abc&other=1&begin=no",
        "size=1&size=2&from=a&from=%C3%A9",
        "color=green&color=red&color=&size=0&from=abcd",
        "size=&from=",
        "color&size=x",
        "from=%FF%00",
    ],
)
async def test_parameters_are_read_as_the_framework_reads_them(query: str) -> None:
    assert await sent("/ours", query) == await sent("/theirs", query)


async def test_invalid_parameters_are_named() -> None:
    status, details = await sent("/ours", "color=green&color=brown&size=0")
    assert (status, set(details)) == (422, {"query.color", "query.size"})


def test_document_is_that_of_the_framework() -> None:
    paths = app.openapi()["paths"]
    assert paths["/ours"]["get"]["parameters"] == paths["/theirs"]["get"]["parameters"]
