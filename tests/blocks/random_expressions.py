"""Random expressions with all functions, operators and macros, over values that are extreme."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime

from pydantic import JsonValue

from bloxserver.blocks.base import BlockError
from bloxserver.blocks.calculate import CALCULATION, CALCULATIONS
from bloxserver.blocks.cel.function import Function
from bloxserver.blocks.cel.functions import FUNCTIONS
from bloxserver.blocks.cel.syntax import MACROS, PRECEDENCES
from bloxserver.blocks.cel.values import MAX_STEPS, Budget, CostLimitExceeded, Invocation
from bloxserver.blocks.expressions import CEL, Expression, compile_expression

NUMBERS = (
    *("0", "1", "-1", "0.5", "-0.0", "2.5", "7", "64", "65", "1e308", "-1e308", "5e-324", "1e-308", "1e15", "1e19"),
    *("9223372036854775807", "-9223372036854775808", "9007199254740993", "0x7fffffffffffffff", "253402300799"),
)
TEXTS = (
    *("''", "'a'", "'ab'", "'aaaaab'", "'é'", "'😀'", "' x '", "'\\n'", "'1'", "'1e400'", "'-0x1'", "'nan'", "'true'"),
    *("'2024-02-29T12:00:00Z'", "'0000-00-00T00:00:00Z'", "'9999-12-31T23:59:59-23:59'", "'1h30m'", "'-99999999h'"),
    *("'2026-01-31'", "'Sat, 31 Jan 2026 12:00:00 GMT'", "'Europe/Berlin'", "'days'", "'%Y %V'", "'%41'", "'aMO8'"),
    *("'[1, {}]'", "'base64'", "'sha1'"),
    *(
        "'(a|b)*'",
        "'a{1000}'",
        "'\\\\pL{9}'",
        "'('",
        "'a**'",
        "'[^a]'",
        "'\\\\C'",
        "'name'",
        "'0'",
        "'" + "x" * 90 + "'",
    ),
)
PATHS = (
    *("payload", "payload.numbers", "payload.texts", "payload.objects", "payload.mixed", "payload.deep", "payload.big"),
    *("payload.surrogate", "payload.long", "payload.float", "payload.none", "payload.missing", "payload.empty"),
)
DEEP: JsonValue = [[[[[[{"a": [1, {"b": None}]}]]]]]]
PAYLOAD: dict[str, JsonValue] = {
    "numbers": [3, 1.5, -2, 2**63 - 1, -(2**63), 1e308, 5e-324, 0],
    "texts": ["", "a", "ab" * 50, "é" * 20, "😀x", "a" * 300, "\x00", "2024-02-29T12:00:00Z"],
    "objects": [{"id": 1, "name": "a"}, {"id": 2.5, "tags": ["x"]}, {}],
    "mixed": [1, "1", None, True, [1], {"a": 1}, 2.5, 10**400],
    "deep": DEEP,
    "big": 10**400,
    "surrogate": "a\ud800b",
    "long": "ab" * 500,
    "float": float("inf"),
    "none": None,
    "empty": [],
}
MOMENT = datetime(2024, 2, 29, tzinfo=UTC)
OPERATORS = tuple(PRECEDENCES)
MAX_DEPTH = 5


class Generator:
    """Generates expressions from a seed: most of them compile."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311
        self._is_calculation = False
        self._variables: list[str] = []

    def expression(self) -> tuple[str, bool]:
        """Return an expression, and whether it is in the language of `calculate`."""
        self._is_calculation = self._random.random() < 0.3
        self._variables = []
        return self._any(self._random.randint(1, MAX_DEPTH)), self._is_calculation

    def _any(self, depth: int) -> str:
        choose = self._random.choice
        if depth <= 0:
            return choose([*PATHS, *NUMBERS, *TEXTS, *self._variables * 8, "true", "false", "null", "[]", "{}", "int"])
        inner = depth - 1
        forms = [self._operation, self._call, self._call, self._call, self._macro, self._access, self._literal]
        return choose(forms)(inner)

    def _operation(self, depth: int) -> str:
        operators = [sign for sign in OPERATORS if sign != "//"]
        operators += ["**", "^", "//"] if self._is_calculation else []
        one, two, three = self._any(depth), self._any(depth), self._any(depth)
        form = self._random.randrange(8)
        if form == 0:
            return f"({one} ? {two} : {three})"
        if form == 1:
            return f"{self._random.choice('-!')}({one})"
        return f"({one} {self._random.choice(operators)} {two})"

    def _call(self, depth: int) -> str:
        functions: Mapping[str, Function] = CALCULATIONS if self._is_calculation else FUNCTIONS
        name = self._random.choice([*functions])
        function = functions[name]
        count = len(function.takes) - self._random.randint(0, function.optional)
        count += self._random.randint(0, 3) if function.repeats else 0
        arguments = [self._argument(function.takes[min(i, len(function.takes) - 1)], depth) for i in range(count)]
        if arguments and self._random.random() < 0.5 and not name.startswith("math."):
            return f"({arguments[0]}).{name}({', '.join(arguments[1:])})"
        return f"{name}({', '.join(arguments)})"

    def _argument(self, kinds: str, depth: int) -> str:
        """Return an argument that often has one of these kinds."""
        choose = self._random.choice
        if self._random.random() < 0.4:
            return self._any(depth)
        match choose(kinds.split("|")):
            case "a text":
                return choose([*TEXTS, "payload.long", "payload.texts[3]", "payload.surrogate"])
            case "a number":
                return choose([*NUMBERS, "payload.big", "payload.float"])
            case "a list":
                return choose(["payload.numbers", "payload.texts", "payload.mixed", "payload.objects", "[1, 2.5]"])
            case "a timestamp":
                return choose(["timestamp(0)", "timestamp('2024-02-29T12:00:00Z')", "timestamp(253402300799)"])
            case "a duration":
                return choose(["duration('1h')", "duration(-1e9)"])
        return self._any(depth)

    def _macro(self, depth: int) -> str:
        variable = f"v{len(self._variables)}"
        over = self._argument("a list|an object", depth)
        self._variables.append(variable)
        bodies = [self._any(depth)]
        macro = self._random.choice(MACROS)
        if macro == "map" and self._random.random() < 0.3:
            bodies.append(self._any(depth))
        self._variables.pop()
        return f"({over}).{macro}({variable}, {', '.join(bodies)})"

    def _access(self, depth: int) -> str:
        form = self._random.randrange(3)
        if form == 0:
            return f"({self._any(depth)})[{self._any(depth)}]"
        field = self._random.choice(["id", "a", "name", "tags", "missing"])
        return f"has(({self._any(depth)}).{field})" if form == 1 else f"({self._any(depth)}).{field}"

    def _literal(self, depth: int) -> str:
        items = [self._any(depth) for _ in range(self._random.randint(0, 3))]
        if self._random.random() < 0.5:
            return f"[{', '.join(items)}]"
        return f"{{{', '.join(f'{self._random.choice(TEXTS)}: {item}' for item in items)}}}"


def compiled(text: str, is_calculation: bool) -> Expression:
    """Raises `ValueError` for an expression that is invalid."""
    names = frozenset({"payload"})
    return compile_expression(text, names, CALCULATION if is_calculation else CEL)


def outcome(text: str, is_calculation: bool) -> str:
    """Evaluate an expression. Return `value`, `invalid`, `too costly` or the code of the error."""
    try:
        expression = compiled(text, is_calculation)
    except ValueError:
        return "invalid"
    try:
        expression.evaluate({"payload": PAYLOAD}, Budget(MAX_STEPS, invocation=Invocation(MOMENT, "key")))
    except CostLimitExceeded:
        return "too costly"
    except BlockError as error:
        return error.code
    return "value"
