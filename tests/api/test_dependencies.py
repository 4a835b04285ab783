"""Dependencies of routes. Their behaviour is tested with the routes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter
from fastapi.dependencies.models import Dependant

from bloxserver.api.routes import AUTHENTICATED, DOCUMENTATION, PUBLIC


def dependencies(router: APIRouter) -> Iterator[Any]:
    for route in router.routes:
        yield from _below(route.dependant)  # type: ignore[attr-defined]


def _below(dependant: Dependant) -> Iterator[Any]:
    for dependency in dependant.dependencies:
        yield dependency.call
        yield from _below(dependency)


def test_no_dependency_runs_in_a_thread() -> None:
    """FastAPI calls dependencies that are not coroutine functions or asynchronous generators in a thread."""
    calls = {call for router in (*PUBLIC, *AUTHENTICATED, *DOCUMENTATION) for call in dependencies(router)}
    assert len(calls) > 10
    assert [call for call in calls if not (inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call))] == []
