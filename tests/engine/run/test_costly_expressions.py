"""Expressions and templates that exceed the budget of the event loop: they run in another process."""

from __future__ import annotations

import json
from ipaddress import ip_network

import pytest
from pydantic import JsonValue

from bloxserver.blocks.registry import get_registry
from bloxserver.clients.http import GuardedClient
from bloxserver.engine.run.messages import Failed, Finished, Message, Outcome
from bloxserver.engine.run.pump import Pump
from bloxserver.llm.gateway import LanguageModels
from bloxserver.organism.parse import parse
from bloxserver.raw_json import is_large, plain
from bloxserver.settings import Settings
from tests.clients.loopback import answer, running_server
from tests.engine.pump_runs import Log, World, echo, organism

NUMBERS: JsonValue = [*range(3_000)]
ODD = "payload.filter(x, x % 2 == 1).map(x, x + 1).sum()"
TOO_COSTLY = "payload.all(x, payload.sort().size() > 0)"
MESSAGE = "the expressions and templates take too many steps"


async def run(
    text: str, payload: JsonValue = NUMBERS, secrets: dict[str, str] | None = None
) -> tuple[Outcome, Log, bool]:
    """Return the outcome, what was saved, and whether another process was used."""
    assert not is_large(json.dumps(payload))
    http = GuardedClient(allow=[ip_network("127.0.0.1/32")])
    models = LanguageModels(Settings())
    world, log = World(http, models, secrets or {}, payload), Log()
    parsed = parse(text, get_registry())
    try:
        outcome = await Pump(parsed, [], world, log.save).run(Message(parsed.entry().name, payload))
    finally:
        await models.aclose()
    return outcome, log, world.isolated.cpu_seconds > 0


def output(outcome: Outcome) -> JsonValue:
    assert isinstance(outcome, Finished), outcome
    return plain(outcome.output)


def branch(conditions: list[str]) -> str:
    cases = ", ".join(f"{{when: '{condition}', to: b}}" for condition in conditions)
    return organism(f"name: a, handler: branch, config: {{cases: [{cases}], otherwise: c}}", echo("b"), echo("c"))


ANSWERS: dict[str, tuple[str, JsonValue]] = {
    "expression": (f"handler: transform, config: {{expression: '{ODD}'}}", 2_251_500),
    "calculation": (f"handler: calculate, config: {{expression: '{ODD} / 2'}}", {"result": 1_125_750}),
    "mapping": (
        "handler: transform, config: {mapping: {a.b: '5', all: ., c: .}}",
        {"a": {"b": 5}, "all": NUMBERS, "c": NUMBERS},
    ),
    "template": (
        "handler: transform, config: {output: ['{{ payload }}', '{{ payload.7 }}', '{{ payload }}']}",
        [NUMBERS, 7, NUMBERS],
    ),
    "text": (
        "handler: text.template, config: {template: '{{ payload }}{{ payload }}'}",
        {"text": json.dumps(NUMBERS, separators=(",", ":")) * 2},
    ),
}


@pytest.mark.parametrize(("listener", "expected"), ANSWERS.values(), ids=ANSWERS)
async def test_answer_comes_from_another_process(listener: str, expected: JsonValue) -> None:
    outcome, _, other_process = await run(organism(f"name: a, {listener}"))
    assert output(outcome) == expected
    assert other_process


@pytest.mark.parametrize("listener", [listener for listener, _ in ANSWERS.values()], ids=ANSWERS)
async def test_small_message_stays_on_the_event_loop(listener: str) -> None:
    outcome, _, other_process = await run(organism(f"name: a, {listener}"), [*range(10)])
    assert isinstance(outcome, Finished)
    assert not other_process


async def test_cases_of_a_branch_share_a_budget() -> None:
    def branch(cases: int) -> str:
        written = [f"{{when: 'payload.exists(x, x == -{number + 1})', to: b}}" for number in range(cases)]
        return organism(
            f"name: a, handler: branch, config: {{cases: [{', '.join(written)}], otherwise: c}}", echo("b"), echo("c")
        )

    numbers: JsonValue = [*range(500)]
    for cases, expected in ((1, False), (20, True)):
        outcome, log, other_process = await run(branch(cases), numbers)
        assert output(outcome) == numbers
        assert log.handled() == ["a", "c"]
        assert other_process is expected


async def test_conditions_of_peers_share_a_budget() -> None:
    peers = [f"{{to: b{number}, when: 'payload.all(x, x != {number})'}}" for number in (0, -1, 999, -2, -3, -4)]
    text = organism(echo("a", *peers), *(echo(f"b{number}") for number in (0, -1, 999, -2, -3, -4)))
    _, log, other_process = await run(text, [*range(1_000)])
    assert log.handled() == ["a", "b-1", "b-2", "b-3", "b-4"]
    assert other_process


async def test_failed_condition_in_another_process_names_its_peer() -> None:
    peers = f"[{{to: b, when: '{ODD} > 0'}}, {{to: c, when: 'payload[0].missing'}}]"
    outcome, _, _ = await run(organism(f"name: a, handler: echo, peers: {peers}", echo("b"), echo("c")))
    assert isinstance(outcome, Failed)
    assert outcome.error.startswith('a: the condition for "c" cannot be evaluated: payload[0].missing: no such field')


async def test_too_costly_expression_is_an_error() -> None:
    outcome, log, _ = await run(
        organism(f"name: a, handler: transform, retries: 3, config: {{expression: '{TOO_COSTLY}'}}")
    )
    assert outcome == Failed(f"a (attempt 1 of 4): {MESSAGE}")
    assert [step.error_code for step in log.saved if step.error_code] == ["expression_too_costly"]


async def test_too_costly_condition_fails_the_execution() -> None:
    outcome, _, _ = await run(organism(f"name: a, handler: echo, peers: [{{to: b, when: '{TOO_COSTLY}'}}]", echo("b")))
    assert outcome == Failed(f'a: the condition for "b" cannot be evaluated: {MESSAGE}')


async def test_costly_config_is_sent_once_with_its_secrets() -> None:
    async with running_server() as server:
        url = server.url("/")
        server.answers["/"] = answer(b"{}", headers={"Content-Type": "application/json"})
        text = organism(
            f"name: a, handler: http.request, config: {{url: '{url}', method: POST, "
            "headers: {X-Key: '{{ secrets.KEY }}'}, body: {one: '{{ payload }}', two: '{{ payload }}'}}"
        )
        outcome, log, other_process = await run(text, NUMBERS, {"KEY": "s3cr3t"})
        assert isinstance(outcome, Finished)
        assert other_process
        [request] = server.received
        assert json.loads(request.body) == {"one": NUMBERS, "two": NUMBERS}
        assert request.headers["x-key"] == "s3cr3t"
        assert "s3cr3t" not in repr(log.saved)


async def test_long_conditions_are_compiled_and_evaluated() -> None:
    written = [
        f"{{when: 'payload == {number} || {' || '.join(['payload == 0'] * 120)}', to: b}}" for number in range(8)
    ]
    text = organism(
        f"name: a, handler: branch, config: {{cases: [{', '.join(written)}], otherwise: c}}", echo("b"), echo("c")
    )
    outcome, log, _ = await run(text, -1)
    assert output(outcome) == -1
    assert log.handled() == ["a", "c"]
