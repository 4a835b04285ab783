"""Attacks that store much, or read much of what is stored."""

from __future__ import annotations

import asyncio
import json

from benchmarks.neighbours.attacker import Attacker
from benchmarks.neighbours.cases.case import ECHO, Case, fan_out, listener, organism, requests, webhooks

MEGABYTE = b'{"text": "' + b"a" * 1_000_000 + b'"}'
SECRETS = 100


async def _large_triggers(attacker: Attacker) -> None:
    """Create triggers of 1 MB and list them."""
    config = {"text": "a" * 1_000_000}
    await asyncio.gather(
        attacker.repeat(lambda: _create_trigger(attacker, "manual", config), 4),
        attacker.repeat(lambda: attacker.send("GET", f"{attacker.flow}/triggers", discard=True), 10),
    )


async def _schedules(attacker: Attacker) -> None:
    """Create many schedules that fire each minute, and some that never fire."""
    await asyncio.gather(
        attacker.repeat(lambda: _create_trigger(attacker, "schedule", {"cron": "* * * * *"})),
        attacker.repeat(lambda: _create_trigger(attacker, "schedule", {"cron": "0 0 31 2 *"})),
    )


async def _create_trigger(attacker: Attacker, kind: str, config: object) -> None:
    answer = await attacker.send("POST", f"{attacker.flow}/triggers", {"type": kind, "name": "t", "config": config})
    if answer.status >= 400:
        await asyncio.sleep(0.05)


async def _steps_pages(attacker: Attacker) -> None:
    """Run one execution with 60 MB of steps, and read its steps, events and retries."""
    execution = json.loads((await attacker.trigger(MEGABYTE[:900_000] + b'"}', "?wait=20")).body)["executionId"]
    steps = f"{attacker.flow}/executions/{execution}/steps?page_size=1000"
    await attacker.repeat(lambda: attacker.send("GET", steps, discard=True), 10)


async def _retries(attacker: Attacker) -> None:
    """Retry an execution from its failed step; the finished steps are copied."""
    execution = json.loads((await attacker.trigger(MEGABYTE[:900_000] + b'"}', "?wait=20")).body)["executionId"]
    path = f"{attacker.flow}/executions/{execution}/retry?from=failed"
    await attacker.repeat(lambda: attacker.send("POST", path))


async def _delete_flow(attacker: Attacker) -> None:
    await attacker.send("DELETE", attacker.flow)


async def _delete_storm(attacker: Attacker) -> None:
    """Create, run and delete flows."""

    async def one() -> None:
        created = await attacker.send("POST", "/api/v1/flows", {"name": "again", "organismYaml": ECHO})
        if created.status == 201:
            await attacker.send("DELETE", f"/api/v1/flows/{created.json()['id']}")
        else:
            await attacker.send("DELETE", attacker.flow)

    await attacker.repeat(one)


async def _secrets(attacker: Attacker) -> None:
    """Store 100 secrets, and let each step be searched for them."""
    for number in range(SECRETS):
        await attacker.send("PUT", f"/api/v1/secrets/S{number}", {"value": "a" * 100 + str(number)})
    await attacker.repeat(lambda: attacker.trigger(b'{"text": "' + b"a" * 900_000 + b'"}'))


USES_SECRETS = fan_out(
    10,
    "webhook.send",
    {"url": "URL/ok", "headers": {f"x-{n}": "{{ secrets.S" + str(n) + " }}" for n in range(SECRETS)}},
)
FAILS_LAST = organism(
    listener("echo", peers=[*(f"b{number}" for number in range(28)), "c"]),
    *(listener("echo", name=f"b{number}") for number in range(28)),
    listener("echo", name="c", peers=["d"]),
    listener("json.parse", name="d"),
)

CASES = [
    Case("large-triggers", "H3", "triggers with 1 MB of config, created and listed", _large_triggers),
    Case(
        "stored-bytes",
        "H6",
        "executions with 60 MB of steps each",
        webhooks(MEGABYTE),
        fan_out(32, "echo"),
    ),
    Case("delete-steps", "M8", "deletion of a flow with 400,000 steps", _delete_flow, executions=40, steps=10_000),
    Case("schedules", "new", "schedules that fire each minute, or on 31 February", _schedules),
    Case("steps-pages", "new", "pages with 60 MB of steps, 10 at a time", _steps_pages, fan_out(32, "echo")),
    Case("retries", "new", "retries that copy 55 MB of steps", _retries, FAILS_LAST),
    Case("deletions", "new", "flows that are created and deleted", _delete_storm),
    Case("redaction", "new", "steps of 900 KB that are searched for 100 secrets", _secrets, USES_SECRETS),
    Case(
        "deep-pages",
        "new",
        "pages of executions with the largest numbers",
        requests("GET", "FLOW/executions?page=1000000000&page_size=1000"),
        executions=50_000,
    ),
]
