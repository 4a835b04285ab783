"""What can be known of an expression's values before it is evaluated: what certainly fails is refused then."""

from __future__ import annotations

from collections.abc import Mapping

from bloxserver.blocks.cel import nodes
from bloxserver.blocks.cel.functions import ANYTHING
from bloxserver.blocks.cel.nodes import Node
from bloxserver.blocks.cel.values import KINDS, Budget, CostLimitExceeded, Failure, Run

Kinds = frozenset[str]
"""The kinds that a value may have."""

ANY: Kinds = frozenset(KINDS.values())
BOOLEAN, NUMBER, TEXT, LIST, OBJECT = (
    frozenset({kind}) for kind in ("a boolean", "a number", "a text", "a list", "an object")
)
TIMES = frozenset({"a timestamp", "a duration"})
ORDERED = NUMBER | TEXT | BOOLEAN | TIMES
COMPARISONS = ("==", "!=", "<", "<=", ">", ">=", "in")
MAX_STEPS = 10_000
"""For an operation on constants."""

RESULTS: Mapping[str, Kinds] = {
    **dict.fromkeys(("contains", "startsWith", "endsWith", "matches", "bool"), BOOLEAN),
    **dict.fromkeys(("size", "int", "double", "indexOf", "lastIndexOf"), NUMBER),
    **dict.fromkeys(("string", "charAt", "substring", "replace", "join", "lowerAscii", "upperAscii", "trim"), TEXT),
    **dict.fromkeys(("split", "slice", "distinct", "flatten", "sort"), LIST),
    "timestamp": frozenset({"a timestamp"}),
    "duration": frozenset({"a duration"}),
    "type": frozenset({"a type"}),
    "reverse": TEXT | LIST,
}
"""Of functions whose values are always of the same kind. Others that take nothing but numbers give numbers."""


Members = Mapping[str, frozenset[str]]


def check(node: Node, members: Members | None = None, *, real: bool = False) -> Kinds:
    """The kinds that the value may have. Raises `ValueError` where a part of the expression fails on every message.

    `members` are the names of objects whose members are known, and these; `real` is as in `Run`.
    """
    return _Checker(members or {}, real).check(node)


def check_condition(node: Node, members: Members | None = None) -> None:
    """As `check`; raises `ValueError` also where the value is never true or false."""
    if check(node, members).isdisjoint(BOOLEAN):
        raise ValueError("a condition must be true or false; compare the value with something")


class _Checker:
    """Goes through an expression once, from its leaves to its root."""

    def __init__(self, members: Members, real: bool) -> None:
        self._members = members
        self._real = real

    def check(self, node: Node) -> Kinds:
        kinds, constant = self._of(node)
        if constant:
            self._evaluate(node)
        return kinds

    def _of(self, node: Node) -> tuple[Kinds, bool]:
        """The node's kinds, and whether it consists of constants."""
        match node:
            case nodes.Constant():
                return frozenset({_kind(node.value)}), True
            case nodes.Name():
                return ANY, False
            case nodes.Macro():
                return self._macro(node), False
        children = [self._of(child) for child in node.children]
        constant = all(is_constant for _, is_constant in children)
        if not constant:
            for child, (_, is_constant) in zip(node.children, children, strict=True):
                if is_constant:
                    self._evaluate(child)
        return self._result(node, [kinds for kinds, _ in children]), constant

    def _macro(self, node: nodes.Macro) -> Kinds:
        _need(self.check(node.over), LIST | OBJECT, f"{node.macro} needs a list or an object")
        outer, self._members = self._members, {k: v for k, v in self._members.items() if k != node.variable}
        for body in node.bodies:
            kinds = self.check(body)
            if not (isinstance(node, nodes.Collection) and body is node.result):
                _need(kinds, BOOLEAN, f"{node.macro} needs true or false")
        self._members = outer
        return LIST if type(node) is nodes.Collection else BOOLEAN

    def _result(self, node: Node, given: list[Kinds]) -> Kinds:
        match node:
            case nodes.Not():
                _need(given[0], BOOLEAN, "! needs true or false")
                return BOOLEAN
            case nodes.Negative():
                _need(given[0], NUMBER | {"a duration"}, "- needs a number")
                return given[0] & (NUMBER | {"a duration"})
            case nodes.Logic():
                for kinds in given:
                    _need(kinds, BOOLEAN, f"{node.sign} needs true or false")
                return BOOLEAN
            case nodes.Conditional():
                _need(given[0], BOOLEAN, "? needs true or false")
                return given[1] | given[2]
            case nodes.Select():
                _need(given[0], OBJECT, f".{node.field} needs an object")
                if isinstance(node.operand, nodes.Name) and not isinstance(node, nodes.Has):
                    self._check_member(node.operand.name, node.field)
                return BOOLEAN if isinstance(node, nodes.Has) else ANY
            case nodes.Index():
                _need(given[0], LIST | OBJECT, "[…] needs a list or an object")
                _need(given[1], NUMBER | TEXT, "an index is a whole number or a text")
                return ANY
            case nodes.ListOf():
                return LIST
            case nodes.MapOf():
                for key in given[::2]:
                    _need(key, TEXT, "the key of an object is a text")
                return OBJECT
            case nodes.Call():
                return _of_call(node, given)
            case nodes.Operation():
                return _of_operation(node.operator, *given)
        return ANY

    def _check_member(self, name: str, field: str) -> None:
        known = self._members.get(name)
        if known is not None and field not in known:
            raise ValueError(f"{name} has no {field}; it has {', '.join(sorted(known))}")

    def _evaluate(self, node: Node) -> None:
        """Try what is the same for every message."""
        try:
            node.evaluate(Run({}, Budget(MAX_STEPS), self._real))
        except Failure as failure:
            raise ValueError(f"it fails on every message: {failure}") from None
        except CostLimitExceeded:
            pass  # known when it is evaluated


def _kind(value: object) -> str:
    return KINDS[type(value)]


def _need(kinds: Kinds, wanted: Kinds, message: str) -> None:
    if kinds.isdisjoint(wanted):
        raise ValueError(f"{message}, not {' or '.join(sorted(kinds))}")


def _of_call(node: nodes.Call, given: list[Kinds]) -> Kinds:
    takes = node.function.takes
    for index, kinds in enumerate(given):
        wanted = takes[min(index, len(takes) - 1)]
        if wanted != ANYTHING:
            _need(kinds, frozenset(wanted.split("|")), f"{node.function.signature(node.name)} is given something else")
    if node.name in RESULTS:
        return RESULTS[node.name]
    return NUMBER if takes[0] == "a number" or node.name.startswith("get") else ANY


def _of_operation(operator: str, left: Kinds, right: Kinds) -> Kinds:
    if operator in ("==", "!="):
        return BOOLEAN
    if operator == "in":
        _need(right, LIST | OBJECT, "in looks into a list or an object")
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
    advice = ": write string(…) around what is not a text" if operator == "+" and TEXT in (left, right) else ""
    return ValueError(f"{operator} cannot be used with {one} and {other}{advice}")
