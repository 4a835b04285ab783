"""The key `join`: its values, and the problems that are reported before a flow starts."""

from __future__ import annotations

import pytest

from bloxserver.blocks.registry import get_registry
from bloxserver.organism.join_plan import components, plan_joins
from bloxserver.organism.parse import check, parse
from tests.organism.canvases import definition, line

REGISTRY = get_registry()
ALL, ANY = "handler: echo, join: all", "handler: echo, join: any"


def problems(text: str) -> list[tuple[int, int, str, str, str]]:
    return [(each.line, each.column, each.code, each.severity, each.message) for each in check(text, REGISTRY)]


@pytest.mark.parametrize("mode", [ALL, ANY])
def test_fan_out_and_fan_in_has_no_problems(mode: str) -> None:
    text = definition(line("a", "[b, c]"), line("b", "[j]"), line("c", "[j]"), line("j", "[]", mode))
    assert problems(text) == []
    assert parse(text, REGISTRY).listener("j").join == mode[-3:]


@pytest.mark.parametrize(("value", "message"), [("some", '"join" cannot be "some"'), ("[a]", '"join" must be text')])
def test_unknown_value(value: str, message: str) -> None:
    text = definition(line("a", "[]", f"handler: echo, join: {value}"))
    assert problems(text) == [(3, 52, "wrong_type", "error", message)]


@pytest.mark.parametrize("mode", [ALL, ANY])
def test_join_in_a_cycle(mode: str) -> None:
    text = definition(line("a", "[j]"), line("j", "[b, {to: c, on: error}]", mode), line("b", "[j]"), line("c", "[a]"))
    assert problems(text) == [
        (4, 46, "join_in_cycle", "error", 'the join "j" is in the cycle j → b → j, and would wait for its own answer')
    ]


def test_join_that_sends_to_itself() -> None:
    text = definition(line("a", "[j]"), line("j", "['j']", ALL))
    assert [(code, message) for *_, code, _, message in problems(text)] == [
        ("join_in_cycle", 'the join "j" is in the cycle j → j, and would wait for its own answer')
    ]


def test_join_on_a_tool_of_an_agent() -> None:
    text = definition(line("a", "[t]", "prompt: p"), line("b", "[t]"), line("t", "[]", ALL))
    message = '"t" is a tool of "a", and a tool cannot have a join'
    assert problems(text) == [(5, 46, "unsupported", "error", message)]


def test_join_after_an_endless_cycle_never_has_its_message() -> None:
    text = definition(line("a", "[b, c]"), line("b", "[c]"), line("c", "[b, j]"), line("j", "[]", ALL))
    message = 'the join "j" never has a message: the cycle b → c → b before it never ends'
    assert problems(text) == [(6, 46, "endless_join", "error", message)]
    assert "endless_circle" in {code for _, _, code, _, _ in problems(text.replace("all", "any"))}
    assert "endless_join" not in {code for _, _, code, _, _ in problems(text.replace("all", "any"))}


@pytest.mark.parametrize("peers", ["[{to: b, when: payload.x}, j]", "[b, j, {to: a, on: error}]"])
def test_join_after_a_cycle_that_can_end(peers: str) -> None:
    text = definition(line("a"), line("s", "[b]"), line("b", "[c]"), line("c", peers), line("j", "[]", ALL))
    assert "endless_join" not in {code for _, _, code, _, _ in problems(text)}


@pytest.mark.parametrize(
    ("listeners", "reason"),
    [
        ([line("a", "[j]"), line("j", "[]", ALL)], 'only "a" sends to it, once'),
        ([line("a", "[j, {to: j, on: error}]"), line("j", "[]", ALL)], 'only "a" sends to it, once'),
        ([line("a"), line("j", "[]", ANY)], "no listener sends to it"),
    ],
)
def test_join_without_several_messages_is_a_warning(listeners: list[str], reason: str) -> None:
    assert problems(definition(*listeners)) == [(4, 46, "unused_key", "warning", f'"join" has no effect: {reason}')]


@pytest.mark.parametrize(
    "listeners",
    [
        [line("a", "[b, c]"), line("b", "[d]"), line("c", "[d]"), line("d", "[j]")],
        [line("a", "[{to: a, when: payload.x}, j]")],
        [line("a", "[{to: a, when: payload.x}, b]"), line("b", "[j]")],
    ],
    ids=["two paths", "a cycle", "after a cycle"],
)
def test_a_sender_that_can_answer_several_times_is_enough(listeners: list[str]) -> None:
    assert problems(definition(*listeners, line("j", "[]", ALL))) == []


def test_a_join_before_the_sender_makes_its_answer_single() -> None:
    listeners = [line("a", "[b, c]"), line("b", "[i]"), line("c", "[i]"), line("i", "[j]", ALL), line("j", "[]", ALL)]
    assert [message for *_, message in problems(definition(*listeners))] == [
        '"join" has no effect: only "i" sends to it, once'
    ]


def test_an_error_has_a_hint() -> None:
    (problem,) = check(definition(line("a", "[]", "handler: echo, join: every")), REGISTRY)
    assert problem.hint == "write join: all, join: any, or remove it to handle each message on its own"


def layers(number: int, mode: str) -> str:
    """A chain of pairs: without joins, the number of messages doubles with each pair."""
    listeners = [line("l0", "[a0, b0]")]
    for n in range(number):
        more = mode if n else "handler: echo"
        listeners += [line(f"{side}{n}", f"[l{n + 1}]") for side in "ab"]
        listeners.append(line(f"l{n + 1}", f"[a{n + 1}, b{n + 1}]" if n + 1 < number else "[]", more))
    return definition(*listeners, head="organism: {name: x}\nexecution: {max_iterations: 20}")


def test_a_join_counts_as_one_message_for_the_limit() -> None:
    assert "too_many_messages" in {code for _, _, code, _, _ in problems(layers(5, "handler: echo"))}
    assert (
        problems(layers(5, ALL).replace("name: l1, description: d, handler: echo", f"name: l1, description: d, {ALL}"))
        == []
    )


def test_a_limit_that_is_too_small_for_the_joins_is_reported() -> None:
    text = layers(5, ALL).replace("name: l1, description: d, handler: echo", f"name: l1, description: d, {ALL}")
    (problem,) = check(text.replace("20", "15"), REGISTRY)
    assert problem.message == 'an execution that starts at "l0" handles 16 messages, and the limit is 15'


def test_messages_that_any_makes_unnecessary_are_not_counted() -> None:
    text = definition(
        line("a", "[b, c]"), line("b", "[j]"), line("c", "[d]"), line("d", "[j]"), line("j", "[]", ANY),
        head="organism: {name: x}\nexecution: {max_iterations: 2}",
    )  # fmt: skip
    assert problems(text) == []


def names_of(text: str, join: str) -> tuple[set[str], set[str]]:
    plan = plan_joins(parse(text, REGISTRY).listeners)
    assert plan is not None
    each = plan.joins[join]
    return (
        {name for name, bit in plan.bits.items() if each.upstream & bit},
        {name for name, bit in plan.bits.items() if each.replaceable & bit},
    )


def test_any_can_replace_listeners_whose_answers_lead_only_to_it() -> None:
    text = definition(
        line("a", "[b, c, d]"),
        line("b", "[b2, {to: e, on: error}]"),
        line("b2", "[j]"),
        line("c", "[j, e]"),
        line("d", "[f, {to: j, on: error}]"),
        line("e"),
        line("f"),
        line("g", "[{to: g, when: payload.x}, j]"),
        line("j", "[after]", ANY),
        line("after"),
    )
    upstream, replaceable = names_of(text, "j")
    assert upstream == {"a", "b", "b2", "c", "d", "g"}
    assert replaceable == {"b", "b2", "g"}


def test_components_are_in_the_order_of_their_edges() -> None:
    edges = {"e": ["c"], "a": ["b"], "b": ["a", "c"], "c": ["d"], "d": ["c", "f"], "f": []}
    found = [sorted(component) for component in components(edges)]
    assert sorted(found) == [["a", "b"], ["c", "d"], ["e"], ["f"]]
    assert found.index(["a", "b"]) < found.index(["c", "d"]) < found.index(["f"])
    assert found.index(["e"]) < found.index(["c", "d"])


def expressions_after(join: str, *texts: str) -> list[str]:
    """The warnings about the members of a join's message."""
    branches = [
        line("a", "[b, c, d]"),
        line("b", "[j, {to: j, on: error}]", 'handler: http.request, config: {url: "https://example.com"}'),
        line("c", "[j]", 'handler: http.request, config: {url: "https://example.com"}'),
        line("d", "[e, {to: d, when: payload.x}]"),
        line("e", "[j]", 'handler: http.request, config: {url: "https://example.com"}'),
    ]
    output = ", ".join(f"m{number}: '{{{{ {text} }}}}'" for number, text in enumerate(texts))
    more = f"handler: transform, join: {join}, config: {{output: {{{output}}}}}"
    return [message for *_, message in problems(definition(*branches, line("j", "[]", more)))]


def test_expressions_are_checked_against_the_senders_of_a_join() -> None:
    right = ("payload.b.body", "payload.b.error.message", "payload.c.status", "payload.e[0].body.x", "payload.e.1.body")
    assert expressions_after("all", *right) == []
    assert expressions_after("all", "payload.body", "payload.f", "payload.c.bodyy") == [
        'payload has no member "body"',
        'payload has no member "f"',
        'payload.c has no member "bodyy"',
    ]
    assert expressions_after("any", "payload.body", "payload.c") == ['payload has no member "c"']
