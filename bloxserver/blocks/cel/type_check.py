"""Static type check of expressions: rejects an expression that fails for every message."""

from __future__ import annotations

from collections.abc import Mapping

from bloxserver.blocks.cel import nodes
from bloxserver.blocks.cel.function import ANYTHING
from bloxserver.blocks.cel.nodes import Node
from bloxserver.blocks.cel.values import KINDS, Budget, CostLimitExceeded, EvaluationError, Run

Kinds = frozenset[str]
"""The possible kinds of a value."""

ANY: Kinds = frozenset(KINDS.values())
BOOLEAN, NUMBER, TEXT, LIST, OBJECT = (
    frozenset({kind}) for kind in ("a boolean", "a number", "a text", "a list", "an object")
)
TIMES = frozenset({"a timestamp", "a duration"})
ORDERED = NUMBER | TEXT | BOOLEAN | TIMES
COMPARISONS = ("==", "!=", "<", "<=", ">", ">=", "in")
MAX_STEPS = 10_000
"""The limit for the evaluation of constants."""

RESULTS: Mapping[str, Kinds] = {
    **dict.fromkeys(("contains", "startsWith", "endsWith", "matches", "bool"), BOOLEAN),
    **dict.fromkeys(("size", "int", "double", "indexOf", "lastIndexOf"), NUMBER),
    **dict.fromkeys(("string", "charAt", "substring", "replace", "join", "lowerAscii", "upperAscii", "trim"), TEXT),
    **dict.fromkeys(("lower", "upper", "url_encode", "url_decode", "base64_encode", "base64_decode"), TEXT),
    **dict.fromkeys(("json_format", "sha256", "hmac", "hmac_sha256", "uuid", "format_number"), TEXT),
    **dict.fromkeys(("format_time", "in_zone"), TEXT),
    **dict.fromkeys(("split", "slice", "distinct", "unique", "flatten", "sort"), LIST),
    **dict.fromkeys(("timestamp", "parse_time", "add_time", "now"), frozenset({"a timestamp"})),
    "number": NUMBER,
    "duration": frozenset({"a duration"}),
    "type": frozenset({"a type"}),
    "reverse": TEXT | LIST,
}
"""The kinds of the results of functions. Other functions that take numbers only return numbers."""


Members = Mapping[str, frozenset[str]]


def check(node: Node, members: Members | None = None, *, real: bool = False) -> Kinds:
    """Return the possible kinds of the value. Raises `ValueError` if a part of the expression fails for every message.

    `members` maps the names of objects with known members to these members; `real` is as in `Run`.
    """
    return _Checker(members or {}, real).check(node)


def check_condition(node: Node, members: Members | None = None) -> None:
    """Like `check`; also raises `ValueError` if the value can never be a boolean."""
    if check(node, members).isdisjoint(BOOLEAN):
        raise ValueError("a condition must be true or false; compare the value with another value")


def check_list(node: Node) -> None:
    """Like `check`; also raises `ValueError` if the value can never be a list."""
    if check(node).isdisjoint(LIST):
        raise ValueError("the value is never a list")


class _Checker:
    """Infers the kinds of all nodes of an expression, from its leaves to its root."""

    def __init__(self, members: Members, real: bool) -> None:
        self._members = members
        self._real = real

    def check(self, node: Node) -> Kinds:
        kinds, constant = self._infer(node)
        if constant:
            self._evaluate(node)
        return kinds

    def _infer(self, node: Node) -> tuple[Kinds, bool]:
        """Return the node's kinds, and whether it consists of constants only."""
        match node:
            case nodes.Constant():
                return frozenset({_kind(node.value)}), True
            case nodes.Name():
                return ANY, False
            case nodes.Macro():
                return self._infer_macro(node), False
            case nodes.Default():
                return self._infer_default(node)
        children = [self._infer(child) for child in node.children]
        constant = all(is_constant for _, is_constant in children)
        constant = constant and not (isinstance(node, nodes.Call) and not node.function.is_pure)
        if not constant:
            for child, (_, is_constant) in zip(node.children, children, strict=True):
                if is_constant:
                    self._evaluate(child)
        return self._infer_node(node, [kinds for kinds, _ in children]), constant

    def _infer_default(self, node: nodes.Default) -> tuple[Kinds, bool]:
        kinds, constant = self._infer(node.operand)
        if constant:
            self._evaluate(nodes.Default(node.operand, nodes.Constant(None)))
        return (kinds - {"null"}) | self.check(node.otherwise), False

    def _infer_macro(self, node: nodes.Macro) -> Kinds:
        _require(self.check(node.over), LIST | OBJECT, f"{node.macro} needs a list or an object")
        outer, self._members = self._members, {k: v for k, v in self._members.items() if k != node.variable}
        for body in node.bodies:
            kinds = self.check(body)
            is_value = isinstance(node, nodes.Keyed) or (isinstance(node, nodes.Collection) and body is node.result)
            if not is_value:
                _require(kinds, BOOLEAN, f"{node.macro} needs true or false")
        self._members = outer
        if isinstance(node, nodes.Keyed):
            return OBJECT if node.macro == "group_by" else LIST
        return LIST if type(node) is nodes.Collection else BOOLEAN

    def _infer_node(self, node: Node, given: list[Kinds]) -> Kinds:
        match node:
            case nodes.Not():
                _require(given[0], BOOLEAN, "! needs true or false")
                return BOOLEAN
            case nodes.Negative():
                _require(given[0], NUMBER | {"a duration"}, "- needs a number")
                return given[0] & (NUMBER | {"a duration"})
            case nodes.Logic():
                for kinds in given:
                    _require(kinds, BOOLEAN, f"{node.sign} needs true or false")
                return BOOLEAN
            case nodes.Conditional():
                _require(given[0], BOOLEAN, "? needs true or false")
                return given[1] | given[2]
            case nodes.Select():
                _require(given[0], OBJECT, f".{node.field} needs an object")
                if isinstance(node.operand, nodes.Name) and not isinstance(node, nodes.Has):
                    self._check_member(node.operand.name, node.field)
                return BOOLEAN if isinstance(node, nodes.Has) else ANY
            case nodes.Index():
                _require(given[0], LIST | OBJECT, "[…] needs a list or an object")
                _require(given[1], NUMBER | TEXT, "an index must be an integer or a text")
                return ANY
            case nodes.ListOf():
                return LIST
            case nodes.MapOf():
                for key in given[::2]:
                    _require(key, TEXT, "the key of an object must be a text")
                return OBJECT
            case nodes.Call():
                return _infer_call(node, given)
            case nodes.Operation():
                return _infer_operation(node.operator, *given)
        return ANY

    def _check_member(self, name: str, field: str) -> None:
        known = self._members.get(name)
        if known is not None and field not in known:
            raise ValueError(f"{name} has no {field}; it has {', '.join(sorted(known))}")

    def _evaluate(self, node: Node) -> None:
        """Evaluate a constant expression, which has the same result for every message."""
        try:
            node.evaluate(Run({}, Budget(MAX_STEPS), self._real))
        except EvaluationError as failure:
            raise ValueError(f"the expression fails for every message: {failure}") from None
        except CostLimitExceeded:
            pass  # reported when the expression is evaluated


def _kind(value: object) -> str:
    return KINDS[type(value)]


def _require(kinds: Kinds, wanted: Kinds, message: str) -> None:
    if kinds.isdisjoint(wanted):
        raise ValueError(f"{message}, not {' or '.join(sorted(kinds))}")


def _infer_call(node: nodes.Call, given: list[Kinds]) -> Kinds:
    takes = node.function.takes
    for index, kinds in enumerate(given):
        wanted = takes[min(index, len(takes) - 1)]
        if wanted != ANYTHING:
            message = f"argument {index + 1} of {node.name} must be {wanted.replace('|', ' or ')}"
            _require(kinds, frozenset(wanted.split("|")), message)
    for index, check_constant in node.function.constants.items():
        argument = node.arguments[index] if index < len(node.arguments) else None
        if isinstance(argument, nodes.Constant):
            try:
                check_constant(argument.value)
            except EvaluationError as failure:
                raise ValueError(f"the expression fails for every message: {failure}") from None
    if node.name in RESULTS:
        return RESULTS[node.name]
    return NUMBER if takes[0] == "a number" or node.name.startswith("get") else ANY


def _infer_operation(operator: str, left: Kinds, right: Kinds) -> Kinds:
    if operator in ("==", "!="):
        return BOOLEAN
    if operator == "in":
        _require(right, LIST | OBJECT, "in needs a list or an object")
        return BOOLEAN
    if operator in COMPARISONS:
        if (left & right).isdisjoint(ORDERED):
            raise _mismatch(operator, left, right)
        return BOOLEAN
    if operator == "+":
        alike = left & right & (NUMBER | TEXT | LIST)
        times = (left | right) & TIMES if not (left.isdisjoint(TIMES) or right.isdisjoint(TIMES)) else frozenset()
        if not alike | times:
            raise _mismatch(operator, left, right)
        return alike | times
    if operator == "-" and not (left.isdisjoint(TIMES) or right.isdisjoint(TIMES)):
        return (left & right & NUMBER) | TIMES
    if (left & right).isdisjoint(NUMBER):
        raise _mismatch(operator, left, right)
    return NUMBER


def _mismatch(operator: str, left: Kinds, right: Kinds) -> ValueError:
    one, other = (" or ".join(sorted(kinds)) if kinds != ANY else "anything" for kinds in (left, right))
    hint = "; convert other values with string(…)" if operator == "+" and TEXT in (left, right) else ""
    return ValueError(f"{operator} cannot be used with {one} and {other}{hint}")
