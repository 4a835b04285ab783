"""Joins over HTTP: the timeline, retries from the failed step, called flows, and a worker that dies."""

from __future__ import annotations

import json
from typing import Any

import httpx

from bloxserver.engine.engine import Engine
from bloxserver.models.database import Database
from bloxserver.models.enums import NOT_NEEDED
from tests.engine.pump_runs import echo, organism
from tests.engine.run.join_runs import fails, join, says
from tests.engine.running_engine import ENDED, accept, end_delay, eventually, run, started_flow, steps_of


async def statuses(client: httpx.AsyncClient, path: str, execution: str) -> dict[str, str]:
    steps = await steps_of(client, f"{path}/executions/{execution}")
    assert len({step["listener"] for step in steps}) == len(steps)
    return {step["listener"]: step["status"] for step in steps}


async def retried(client: httpx.AsyncClient, path: str, execution: str, version: str = "same") -> dict[str, Any]:
    """A retry from the failed step, when it has ended."""
    address = f"{path}/executions/{execution}/retry"
    accepted = await client.post(address, params={"from": "failed", "version": version})
    assert accepted.status_code == 201, accepted.text
    return await eventually(client, f"{path}/executions/{accepted.json()['id']}", ENDED)


async def copied(client: httpx.AsyncClient, path: str, execution: str) -> set[str]:
    steps = await steps_of(client, f"{path}/executions/{execution}")
    return {step["listener"] for step in steps if step["copied"]}


async def test_a_join_has_one_step_with_the_answers_of_all_branches(
    live_client: httpx.AsyncClient, engine: Engine, live_database: Database
) -> None:
    """The delay suspends the execution; the worker that resumes it finds the answer of the other branch again."""
    wait = "name: b, handler: delay, config: {seconds: 600}, peers: [j]"
    text = organism(
        echo("a", "b", "c", "d"), wait, says("c", "{x: 1}", "j"), fails("d", "{to: j, on: error}"), join("j")
    )
    path = await started_flow(live_client, text)
    execution = await accept(live_client, path, {"m": 1})
    await end_delay(live_database, execution)
    ended = await eventually(live_client, execution, ENDED)
    assert (ended["status"], ended["errorMessage"]) == ("success", None)
    steps = {step["listener"]: step for step in await steps_of(live_client, execution)}
    joined = steps["j"]
    assert len(steps) == 5
    assert joined["inputPayload"] == joined["outputPayload"]
    assert joined["parentId"] == steps["b"]["id"], "the last sender"
    assert steps["d"]["routedTo"] == ["j"]
    message = json.loads(joined["inputPayload"])
    error = message.pop("d")["error"]
    assert (error["listener"], message) == ("d", {"b": {"m": 1}, "c": {"x": 1}})


async def test_events_name_the_parent_of_a_join(live_client: httpx.AsyncClient, engine: Engine) -> None:
    path = await started_flow(live_client, organism(echo("a", "b"), echo("b", "j"), join("j")))
    ended = await run(live_client, path, 1)
    events = (await live_client.get(f"{path}/executions/{ended['id']}/events")).text
    steps = {step["listener"]: step["id"] for step in await steps_of(live_client, f"{path}/executions/{ended['id']}")}
    assert f'"parentId":"{steps["b"]}"' in events.replace(" ", "")
    assert ended["outputPayload"] == '{"b": 1}'


async def test_a_retry_repeats_the_join_that_failed_and_nothing_before_it(
    live_client: httpx.AsyncClient, engine: Engine
) -> None:
    broken = "name: j, handler: transform, config: {output: '{{ payload.missing }}'}, join: all"
    text = organism(
        echo("a", "b", "c"), fails("b", "{to: j, on: error}"), echo("c", "j"), f"{broken}, peers: [k]", echo("k")
    )
    path = await started_flow(live_client, text)
    failed = await run(live_client, path, {})
    assert failed["status"] == "error"
    changed = text.replace("payload.missing }}'}, join", "payload.c }}'}, join")
    assert (await live_client.patch(path, json={"organismYaml": changed})).status_code == 200
    again = await retried(live_client, path, failed["id"], "latest")
    assert (again["status"], again["outputPayload"]) == ("success", "{}")
    assert await copied(live_client, path, again["id"]) == {"a", "b", "c"}


async def test_a_retry_does_not_repeat_a_join_that_has_ended(live_client: httpx.AsyncClient, engine: Engine) -> None:
    text = organism(echo("a", "b", "c"), echo("b", "j"), echo("c", "j"), join("j", "k"), fails("k", ""))
    path = await started_flow(live_client, text)
    failed = await run(live_client, path, {})
    again = await retried(live_client, path, failed["id"])
    assert (again["status"], again["errorMessage"]) == ("error", failed["errorMessage"])
    assert await copied(live_client, path, again["id"]) == {"a", "b", "c", "j"}
    assert set(await statuses(live_client, path, again["id"])) == {"a", "b", "c", "j", "k"}
    once_more = await retried(live_client, path, again["id"])
    assert await copied(live_client, path, once_more["id"]) == {"a", "b", "c", "j"}


async def test_a_retry_waits_for_the_branch_that_failed(live_client: httpx.AsyncClient, engine: Engine) -> None:
    text = organism(echo("a", "b", "c"), fails("b", "j"), fails("c", "{to: j, on: error}"), join("j"))
    path = await started_flow(live_client, text)
    failed = await run(live_client, path, {})
    changed = text.replace("payload.missing }}'}, peers: [j]", "payload }}'}, peers: [j]")
    assert (await live_client.patch(path, json={"organismYaml": changed})).status_code == 200
    again = await retried(live_client, path, failed["id"], "latest")
    assert again["status"] == "success", again["errorMessage"]
    assert {"b", "j"}.isdisjoint(await copied(live_client, path, again["id"]))


async def test_any_cancels_the_execution_that_another_branch_called(
    live_client: httpx.AsyncClient, engine: Engine, live_database: Database
) -> None:
    slow = await started_flow(live_client, organism("name: a, handler: delay, config: {seconds: 600}"), name="Slow")
    text = organism(
        echo("a", "b", "c"),
        "name: b, handler: delay, config: {seconds: 600}, peers: [j]",
        "name: c, handler: flow.call, config: {flow: Slow}, peers: [j]",
        join("j", "k", mode="any"),
        fails("k", ""),
    )
    path = await started_flow(live_client, text)
    execution = await accept(live_client, path, {})
    await end_delay(live_database, execution)
    ended = await eventually(live_client, execution, ENDED)
    assert ended["status"] == "error"
    steps = {step["listener"]: step for step in await steps_of(live_client, execution)}
    assert (steps["c"]["status"], steps["c"]["errorCode"]) == ("cancelled", NOT_NEEDED)
    assert steps["j"]["parentId"] == steps["b"]["id"]
    called = await live_client.get(f"{slow}/executions/{steps['c']['calledExecutionId']}")
    assert called.json()["status"] == "cancelled"
    again = await retried(live_client, path, ended["id"])
    assert await copied(live_client, path, again["id"]) == {"a", "b", "c", "j"}
    assert (await statuses(live_client, path, again["id"]))["c"] == "cancelled", "it does not run again"
