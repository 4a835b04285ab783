"""Messages that are too large for the event loop: they are handled in another process, with the same results."""

from __future__ import annotations

import json
from ipaddress import ip_network
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import JsonValue

from bloxserver.blocks.base import AgentContext, BlockContext
from bloxserver.blocks.registry import get_registry
from bloxserver.clients.http import GuardedClient
from bloxserver.clients.mail import Mailer, MailServer
from bloxserver.engine.run.large_messages import MAX_CONFIG_CHARACTERS
from bloxserver.engine.run.messages import Failed, Finished, Message, Outcome, Suspended
from bloxserver.engine.run.pump import Pump
from bloxserver.llm.gateway import LanguageModels
from bloxserver.models.enums import StepStatus
from bloxserver.organism.parse import parse
from bloxserver.raw_json import RawJson, plain
from bloxserver.settings import Settings
from tests.clients.loopback import answer, running_server
from tests.engine.pump_runs import Log, World, echo, organism, pump
from tests.smtp_server import running_smtp_server

LOOPBACK = [ip_network("127.0.0.1/32")]
PAD: JsonValue = ["x" * 40] * 1_000
ORDER: dict[str, JsonValue] = {"id": 7, "total": 12.5, "name": "Ada", "text": '{"a": [1, 2]}', "pad": PAD}


def large(value: JsonValue) -> RawJson:
    return RawJson(json.dumps(value))


def output(outcome: Outcome) -> JsonValue:
    assert isinstance(outcome, Finished), outcome
    return plain(outcome.output)


@pytest.mark.parametrize(
    "listener",
    [
        "handler: echo",
        "handler: transform, config: {mapping: {number: id, whole: .}}",
        "handler: transform, config: {expression: 'payload.pad.size() + payload.id'}",
        "handler: transform, config: {output: {id: '{{ payload.id }}', input: '{{ input.name }}'}}",
        "handler: text.template, config: {template: 'Hello {{ payload.name }}'}",
        "handler: json.parse, config: {path: text}",
        "handler: json.format, config: {indent: 2}",
        "handler: calculate, config: {expression: payload.total * 2}",
        "handler: handlers.hello.handle_greeting",
        'handler: python, config: {code: \'payload["id"] + len(payload["pad"])\'}',
        "handler: delay, config: {seconds: 0}",
        "handler: respond, config: {status: 201, headers: {X-N: '{{ payload.id }}'}}",
    ],
)
async def test_large_message_has_the_same_answer_as_a_small_one(listener: str) -> None:
    text = organism(f"name: a, {listener}")
    in_this_process, _ = await pump(text, ORDER)
    in_another, log = await pump(text, large(ORDER))
    assert output(in_another) == output(in_this_process)
    assert [step.status for step in log.steps] == [StepStatus.SUCCESS]


async def test_large_answers_pass_conditions_and_reach_the_peers() -> None:
    text = organism(
        "name: a, handler: echo, peers: [{to: b, when: 'payload.id == 7'}, {to: c, when: 'input.id == 8'}, d]",
        echo("b"),
        echo("c"),
        echo("d"),
    )
    outcome, log = await pump(text, large(ORDER))
    assert log.handled() == ["a", "b", "d"]
    assert output(outcome) == {"b": ORDER, "d": ORDER}


async def test_large_message_selects_the_case_of_a_branch() -> None:
    cases = "config: {cases: [{when: payload.id > 9, to: b}, {when: payload.id > 5, to: c}], otherwise: b}"
    _, log = await pump(organism(f"name: a, handler: branch, {cases}", echo("b"), echo("c")), large(ORDER))
    assert log.handled() == ["a", "c"]


async def test_failed_condition_over_a_large_answer_names_the_peer() -> None:
    text = organism("name: a, handler: echo, peers: [{to: b, when: payload.missing}]", echo("b"))
    outcome, _ = await pump(text, large(ORDER))
    assert outcome == Failed('a: the condition for "b" cannot be evaluated: payload.missing: no such field: missing')


async def test_error_of_a_large_message_reaches_the_error_peer_with_its_input() -> None:
    text = organism(
        "name: a, handler: json.parse, config: {path: nothing}, peers: [{to: b, on: error, when: error.code != ''}]",
        echo("b"),
    )
    outcome, _ = await pump(text, large(ORDER))
    failed = output(outcome)
    assert isinstance(failed, dict)
    assert failed["input"] == ORDER
    assert failed["error"] == {
        "listener": "a",
        "code": "missing_value",
        "message": "the message has no nothing",
        "attempt": 1,
    }


async def test_delay_of_a_large_message_suspends_the_execution() -> None:
    outcome, log = await pump(organism("name: a, handler: delay, config: {seconds: 600}"), large(ORDER))
    assert isinstance(outcome, Suspended)
    [step] = log.steps
    assert (step.status, plain(step.output)) == (StepStatus.WAITING, ORDER)


async def test_large_message_is_sent_by_a_request_whose_large_answer_is_read() -> None:
    async with running_server() as server:
        server.answers["/x"] = answer(json.dumps(ORDER).encode(), headers={"Content-Type": "application/json"})
        url = server.url("/x?id={{ payload.id }}")
        text = organism(f"name: a, handler: http.request, config: {{method: POST, url: '{url}'}}")
        outcome, _ = await pump(text, large(ORDER), settings=Settings(ssrf_allow_cidrs="127.0.0.1/32"))  # type: ignore[arg-type]
        answered = output(outcome)
        assert isinstance(answered, dict)
        assert (answered["status"], answered["body"]) == (200, ORDER)
        [received] = server.received
        assert received.path == "/x?id=7"
        assert json.loads(received.body) == ORDER


async def test_error_of_a_request_for_a_large_message_is_the_error_of_the_step() -> None:
    text = organism("name: a, handler: http.request, config: {method: POST, url: 'http://10.0.0.1/'}")
    outcome, log = await pump(text, large(ORDER))
    assert isinstance(outcome, Failed)
    assert log.step("a").error_code == "address_refused"


async def test_secrets_are_used_and_redacted_for_large_messages() -> None:
    body = json.dumps([*["canary-4711"] * 10, *["y"] * 9_000]).encode()
    small: JsonValue = {"small": True}
    async with running_server() as server:
        server.answers["/x"] = answer(body, headers={"Content-Type": "application/json"})
        config = f"{{method: POST, url: '{server.url('/x')}', headers: {{Authorization: '{{{{ secrets.KEY }}}}'}}}}"
        text = organism(f"name: a, handler: http.request, config: {config}")
        settings = Settings(ssrf_allow_cidrs="127.0.0.1/32")  # type: ignore[arg-type]
        for payload in (large(ORDER), small):
            outcome, _ = await pump(text, payload, settings=settings, secrets={"KEY": "canary-4711"})
            answered = output(outcome)
            assert isinstance(answered, dict)
            assert answered["body"] == [*["[secret KEY]"] * 10, *["y"] * 9_000]
        assert {received.headers["authorization"] for received in server.received} == {"canary-4711"}


async def test_mail_is_filled_in_from_a_large_message_and_sent_once() -> None:
    world = RecordingWorld(large(ORDER))
    async with running_smtp_server() as server:
        world.mail = Mailer(MailServer("127.0.0.1", server.port, "none"), "flows@example.com", LOOPBACK)
        config = "{to: a@example.com, subject: 'Order {{ payload.id }}', text: 'Dear {{ payload.name }}'}"
        outcome, _ = await run_in(world, organism(f"name: a, handler: email.send, config: {config}"))
        sent = output(outcome)
        assert isinstance(sent, dict)
        assert sent["accepted"] == ["a@example.com"]
        [mail] = server.received
        assert mail.message["Subject"] == "Order 7"
        assert mail.message.get_content().strip() == "Dear Ada"


async def test_large_config_is_filled_in_in_another_process() -> None:
    padding = "p" * MAX_CONFIG_CHARACTERS
    text = organism(f"name: a, handler: text.template, config: {{template: '{padding}{{{{ payload.id }}}}'}}")
    outcome, _ = await pump(text, {"id": 3})
    assert output(outcome) == {"text": f"{padding}3"}


class Recorded:
    """Storage and flows that record what blocks request."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.flow = uuid4()

    async def call(self, flow: str, payload: JsonValue, target: str | None) -> UUID:
        self.requests.append((flow, payload, target))
        return self.flow

    async def get(self, key: str) -> tuple[bool, JsonValue]:
        self.requests.append(key)
        return True, {"stored": key}


class RecordingWorld(World):
    def __init__(self, payload: RawJson) -> None:
        super().__init__(GuardedClient(), LanguageModels(Settings()), {}, payload)
        self.recorded = Recorded()
        self.mail = Mailer(default=None, sender=None)

    def context(self, message: Message, attempt: int, agent: AgentContext | None) -> BlockContext:
        given = super().context(message, attempt, agent)
        values = {name: getattr(given, name) for name in given.__dataclass_fields__}
        return BlockContext(**(values | {"store": self.recorded, "flows": self.recorded, "mail": self.mail}))


async def run_in(world: RecordingWorld, text: str) -> tuple[Outcome, Log]:
    log = Log()
    parsed = parse(text, get_registry())
    outcome = await Pump(parsed, [], world, log.save).run(Message(parsed.entry().name, world.input))
    return outcome, log


async def test_large_message_calls_another_flow_once() -> None:
    world = RecordingWorld(large(ORDER))
    text = organism("name: a, handler: flow.call, config: {flow: '{{ payload.name }}', target: t}")
    outcome, _ = await run_in(world, text)
    assert isinstance(outcome, Suspended)
    assert outcome.called == (world.recorded.flow,)
    assert world.recorded.requests == [("Ada", ORDER, "t")]


async def test_large_message_reads_the_storage_of_the_flow() -> None:
    world = RecordingWorld(large(ORDER))
    text = organism("name: a, handler: key_value, config: {operation: get, key: 'order {{ payload.id }}'}")
    outcome, _ = await run_in(world, text)
    assert output(outcome) == {"found": True, "value": {"stored": "order 7"}}
    assert world.recorded.requests == ["order 7"]
