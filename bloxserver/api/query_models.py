"""Query parameters of a route as one model.

FastAPI has the same, but takes 0.1 ms for a model of 13 parameters: it inspects the type of each in every request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, get_origin

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


def query_reader(model: type[Model]) -> Callable[[Request], Awaitable[Model]]:
    """Return the dependency that reads the query parameters. Fields that are lists are repeatable parameters."""
    fields = {field.alias or name: get_origin(field.annotation) is list for name, field in model.model_fields.items()}

    async def read(request: Request) -> Model:
        sent = request.query_params
        values = {name: sent.getlist(name) if fields[name] else sent[name] for name in sent.keys() & fields.keys()}
        try:
            return model.model_validate(values)
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False)
            raise RequestValidationError([{**one, "loc": ("query", *one["loc"])} for one in found]) from None

    return read


def query_document(model: type[BaseModel]) -> dict[str, Any]:
    """The parameters of the model in the OpenAPI document, for a route's `openapi_extra`."""
    schemas = model.model_json_schema(ref_template="#/components/schemas/{model}")["properties"]
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "description": schema["description"], "schema": schema}
            for name, schema in schemas.items()
        ]
    }
