"""Canvases of flows, and definitions that are derived from canvases."""

from __future__ import annotations

import copy
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.errors import NotFound
from bloxserver.models.default_organism import DEFAULT_ORGANISM
from bloxserver.models.tables import UserRecord
from bloxserver.queries.canvas import MAX_NAMES, derive_definition, read_canvas
from tests.factories import create_flow, create_user


def definition(*names: str, description: str = "d") -> str:
    listeners = [f"  - {{name: {name}, description: {description}, handler: echo, peers: []}}" for name in names]
    return "\n".join(["organism: {name: x}", "listeners:", *listeners, ""])


async def derived_canvas(session: AsyncSession, user: UserRecord, text: str) -> dict[str, Any]:
    flow = await create_flow(session, user, organism_yaml=text)
    canvas = (await read_canvas(session, user.id, flow.id)).canvas_state
    return copy.deepcopy(dict(canvas))


async def test_flow_without_a_canvas_has_one_derived_from_its_definition(
    session: AsyncSession, user: UserRecord
) -> None:
    flow = await create_flow(session, user, organism_yaml=definition("a", "b"))
    canvas = await read_canvas(session, user.id, flow.id)
    assert (canvas.derived, canvas.problems) == (True, [])
    assert [node["id"] for node in canvas.canvas_state["nodes"]] == ["a", "b"]
    assert flow.canvas_state is None


async def test_stored_canvas_that_matches_the_definition_has_no_problems(
    session: AsyncSession, user: UserRecord
) -> None:
    stored = await derived_canvas(session, user, DEFAULT_ORGANISM)
    stored["nodes"][0]["position"] = {"x": 7, "y": 8}
    flow = await create_flow(session, user, organism_yaml=DEFAULT_ORGANISM, canvas_state=stored)
    canvas = await read_canvas(session, user.id, flow.id)
    assert (canvas.canvas_state, canvas.derived, canvas.problems) == (stored, False, [])


async def test_stored_canvas_that_differs_from_the_definition_has_a_warning_with_the_listeners(
    session: AsyncSession, user: UserRecord
) -> None:
    names = [f"a{number}" for number in range(MAX_NAMES + 1)]
    stored = await derived_canvas(session, user, definition(*names))
    one = await create_flow(session, user, organism_yaml=definition(*names[1:]), canvas_state=stored)
    many = await create_flow(session, user, organism_yaml=definition(*names, description="e"), canvas_state=stored)
    [problem] = (await read_canvas(session, user.id, one.id)).problems
    assert (problem.code, problem.severity) == ("canvas_differs", "warning")
    assert problem.message.endswith('in "a0"')
    [problem] = (await read_canvas(session, user.id, many.id)).problems
    assert problem.message.endswith('"a0", "a1", "a2", "a3", "a4", …')


async def test_invalid_definition_is_a_problem_of_the_stored_canvas(session: AsyncSession, user: UserRecord) -> None:
    stored = await derived_canvas(session, user, DEFAULT_ORGANISM)
    flow = await create_flow(session, user, organism_yaml="nonsense", canvas_state=stored)
    canvas = await read_canvas(session, user.id, flow.id)
    assert canvas.canvas_state == stored
    assert [problem.code for problem in canvas.problems] == ["wrong_type"]


async def test_definition_is_derived_from_the_given_canvas_without_changing_the_flow(
    session: AsyncSession, user: UserRecord
) -> None:
    canvas = await derived_canvas(session, user, definition("a", "b"))
    flow = await create_flow(session, user, organism_yaml=definition("a"))
    derived = await derive_definition(session, user.id, flow.id, canvas)
    assert derived.problems == []
    assert derived.organism_yaml.startswith(definition("a"))
    assert "name: b" in derived.organism_yaml
    assert flow.organism_yaml == definition("a")


async def test_definition_is_derived_from_the_stored_canvas_if_none_is_given(
    session: AsyncSession, user: UserRecord
) -> None:
    stored = await derived_canvas(session, user, definition("b"))
    flow = await create_flow(session, user, organism_yaml=definition("a", "b"), canvas_state=stored)
    derived = await derive_definition(session, user.id, flow.id, None)
    assert (derived.organism_yaml, derived.problems) == (definition("b"), [])


async def test_definition_of_a_flow_without_a_canvas_is_derived_unchanged(
    session: AsyncSession, user: UserRecord
) -> None:
    flow = await create_flow(session, user, organism_yaml=DEFAULT_ORGANISM)
    derived = await derive_definition(session, user.id, flow.id, None)
    assert (derived.organism_yaml, derived.problems) == (DEFAULT_ORGANISM, [])


async def test_canvas_is_found_only_for_the_owner_of_the_flow(session: AsyncSession, user: UserRecord) -> None:
    other = await create_user(session)
    flow, deleted = await create_flow(session, user), await create_flow(session, user, deleted_at=now())

    async def derive(session: AsyncSession, user_id: UUID, flow_id: UUID) -> None:
        await derive_definition(session, user_id, flow_id, None)

    for read in (read_canvas, derive):
        for user_id, flow_id in ((other.id, flow.id), (user.id, deleted.id), (user.id, uuid4())):
            with pytest.raises(NotFound) as error:
                await read(session, user_id, flow_id)
            assert (error.value.code, error.value.status) == ("flow_not_found", 404)
