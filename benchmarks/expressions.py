"""Measures the time of a step of an expression, for each function and operator: their costs must be correct."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from statistics import median

from pydantic import JsonValue

from benchmarks.installation import BenchmarkEnvironment
from benchmarks.results import Result
from benchmarks.sizes import Sizes
from bloxserver.blocks.base import BlockError
from bloxserver.blocks.cel.function import Function
from bloxserver.blocks.cel.functions import FUNCTIONS
from bloxserver.blocks.cel.list_functions import KEYED
from bloxserver.blocks.cel.syntax import MAX_CHARACTERS, PRECEDENCES, parse
from bloxserver.blocks.cel.values import MAX_STEPS, NANOSECONDS_PER_STEP, Budget, CostLimitExceeded, Invocation
from bloxserver.blocks.expressions import compile_expression
from tests.blocks.random_expressions import MOMENT, PAYLOAD, Generator, compiled
from tests.blocks.test_expression_limits import DEEPEST, HOSTILE

REPETITIONS = 3
MIN_STEPS = 500
"""Cases with fewer steps are not counted: they measure the time until the first step."""
UNLIMITED = 10**12
SHOWN = 12
Evaluate = Callable[[dict[str, JsonValue], Budget], JsonValue]
Case = tuple[str, str, JsonValue]
"""The name of the measured function or operator, an expression and its message."""


async def measure(environment: BenchmarkEnvironment, kind: str, sizes: Sizes) -> list[Result]:
    """Measure in this process. There is no database."""
    if kind != environment.kinds[0]:
        return []
    rates: dict[str, float] = {}
    for size in sizes.expression_sizes:
        for name, text, payload in _cases(size):
            rate = _nanoseconds_per_step(text, payload)
            if rate is not None:
                rates[name] = max(rates.get(name, 0), rate)
    slowest = sorted(rates.items(), key=lambda item: -item[1])
    target = f"<= {NANOSECONDS_PER_STEP} ns"
    results = [_result(f"slowest: {name}", f"{rate:.0f} ns a step", target) for name, rate in slowest[:SHOWN]]
    middle = f"{median(rates.values()):.0f} ns a step"
    results.append(_result(f"median of {len(rates)} functions, operators and macros", middle))
    compiling = max(_compile_seconds(text) for text in (*HOSTILE.values(), *DEEPEST.values()))
    results.append(_result("slowest of the hostile expressions to compile", f"{compiling * 1000:.1f} ms", "<= 5 ms"))
    evaluating = max(_random_seconds(sizes.random_expressions))
    text = f"slowest of {sizes.random_expressions} random expressions with {MAX_STEPS} steps at most"
    return [*results, _result(text, f"{evaluating * 1000:.1f} ms", "<= 5 ms")]


def _result(measured: str, value: str, target: str = "") -> Result:
    return Result("expressions", "", measured, value, target)


def _cases(size: int) -> Iterator[Case]:
    """Yield expressions whose time depends on a text of `size` characters, or on a list of a corresponding length."""
    texts = {"a": "a" * size, "é": "é" * size, "ab": "ab" * (size // 2), "mixed": "a" * (size - 1) + "😀"}
    parts = ("b", "a" * 7 + "b", "b" + "a" * 50, "a" * (size // 3) + "b" + "a" * (size // 3), "ab" * 1_500 + "b")
    for text in texts.values():
        for name in ("contains", "indexOf", "lastIndexOf", "startsWith", "endsWith", "split"):
            for part in parts:
                yield name, f"payload.text.{name}(payload.part) == 1", {"text": text, "part": part}
        for part in ("", *parts):
            yield "replace", "payload.text.replace(payload.part, 'é') == ''", {"text": text, "part": part}
        for name in ("lowerAscii", "upperAscii", "lower", "upper", "trim", "reverse", "int", "timestamp", "duration"):
            yield name, f"payload.{name}() == 1", text
        for name in ("number", "parse_time", "url_encode", "base64_encode", "base64_decode", "json_format", "sha256"):
            yield name, f"payload.{name}() == 1", text
        yield "url_decode", "payload.url_decode() == ''", text.replace("a", "%")
        yield "json_parse", "payload.json_parse() == 1", f'["{text}"]'
        yield "hmac", "hmac('sha512', payload, payload) == ''", text
        yield "matches", "payload.matches('(?:a|b)*a(?:a|b){12}c')", text[:65_536]
        for operator in ("+", "==", "<"):
            yield operator, f"(payload + 'x') {operator} (payload + 'y') == ''", text
        yield "in", "payload in {payload + '': 1}", text
        yield "sort", "[payload + 'b', payload + 'a', payload + 'c'].sort() == []", text
        yield "join", "[payload, payload].join(payload) == ''", text
        yield "a copy", "payload + ''", text
    for part in ("[],", '{"a":1},', "1.5e3,", '"\\u00e9",'):
        yield "json_parse", "payload.json_parse() == 1", "[" + part * (size // len(part)) + "1]"
    yield from _list_cases(size // 8)


def _list_cases(length: int) -> Iterator[Case]:
    lists: dict[str, list[JsonValue]] = {
        "integers": [*range(length, 0, -1)],
        "floats": [number * 1.1 for number in range(length)],
        "texts": [str(number) for number in range(length)],
        "lists": [[number] for number in range(length // 10)],
        "objects": [{"id": number, "tags": ["x"]} for number in range(length // 10)],
        "nulls": [None] * length,
    }
    for items in lists.values():
        payload: JsonValue = items
        for name in ("reverse", "flatten", "sort", "sum", "min", "max", "join"):
            yield name, f"{name}(payload) == 1", payload
        if not isinstance(items[0], list | dict):
            yield "distinct", "payload.distinct() == 1", payload
        yield "in", "-1 in payload", payload
        yield "==", "payload == payload", payload
        yield "a copy", "payload", payload
        few: JsonValue = items[:1_000]
        for operator in PRECEDENCES:
            if operator != "//":
                yield operator, f"payload.exists(x, (x {operator} x) == 'none')", few
        for name, function in FUNCTIONS.items():
            arguments = ", ".join(_argument(kinds) for kinds in function.takes)
            yield name, f"payload.exists(x, {name}({arguments}) == 'none')", few
            yield f"{name} of another kind", f"payload.exists(x, {_call_of(name, function)} == 'none')", few
        for name in KEYED:
            yield name, f"payload.{name}(x, x) == 1", payload
        yield "json_format", "json_format(payload) == ''", payload
        for name in ("all", "exists", "exists_one", "map", "filter"):
            yield name, f"payload.map(x, [x, x].{name}(y, y == x)) == 1", few
        for body in ("x.a", "x[0]", "[x]", "{'a': x}", "has(x.a)", "!x", "-x", "x ? 1 : 2", "x && x", "1e308 % 1e-300"):
            yield body, f"payload.exists(x, ({body}) == 'none')", few


def _argument(kinds: str) -> str:
    """Return an argument of the first of these kinds."""
    values = {
        "a text": "'aéb'",
        "a number": "2.5",
        "a list": "[2, 1]",
        "a timestamp": "timestamp('2024-02-29T12:00:00Z')",
        "a duration": "duration('1h30m')",
    }
    return values.get(kinds.split("|")[0], "x")


def _call_of(name: str, function: Function) -> str:
    return f"{name}({', '.join(['x'] * len(function.takes))})"


def _nanoseconds_per_step(text: str, payload: JsonValue) -> float | None:
    """Return the shortest time of several evaluations; None if the evaluation has too few steps."""
    evaluate = compile_expression(text).evaluate
    budgets = [Budget(UNLIMITED, invocation=Invocation(MOMENT, "key")) for _ in range(REPETITIONS)]
    seconds = min(_seconds(partial(_evaluate, evaluate, payload, budget)) for budget in budgets)
    steps = UNLIMITED - budgets[-1].left
    return seconds * 1e9 / steps if steps >= MIN_STEPS else None


def _evaluate(
    evaluate: Callable[[dict[str, JsonValue], Budget], JsonValue], payload: JsonValue, budget: Budget
) -> None:
    with suppress(BlockError, CostLimitExceeded):
        evaluate({"payload": payload}, budget)


def _compile_seconds(text: str) -> float:
    def compile_once() -> None:
        with suppress(ValueError):
            parse(text[:MAX_CHARACTERS], {"payload"})

    return min(_seconds(compile_once) for _ in range(REPETITIONS))


def _random_seconds(count: int) -> Iterator[float]:
    generator = Generator(1)
    for _ in range(count):
        try:
            expression = compiled(*generator.expression())
        except ValueError:
            continue
        evaluate = expression.evaluate
        yield min(_seconds(partial(_evaluate, evaluate, PAYLOAD, Budget(MAX_STEPS))) for _ in range(REPETITIONS))


def _seconds(work: Callable[[], None]) -> float:
    gc.disable()
    try:
        started = time.thread_time()
        work()
        return time.thread_time() - started
    finally:
        gc.enable()
