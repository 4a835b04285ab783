"""The nodes of an expression's syntax tree, and their evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from bloxserver.blocks.cel.function import Function
from bloxserver.blocks.cel.list_functions import KEYED
from bloxserver.blocks.cel.values import (
    ERROR_STEPS,
    OPERATORS,
    EvaluationError,
    MissingValue,
    Run,
    has_key,
    kind_of,
    negative,
)

Item = TypeVar("Item")
INNER_STEPS = 4
NAMES_PER_STEP = 8
"""The names of the scope that a macro copies in a step."""


class Node:
    """A node of the tree. `depth` is the height of its subtree, `size` the number of nodes in it."""

    def __init__(self, *children: Node) -> None:
        self.children = children
        self.depth: int = 1 + max((child.depth for child in children), default=0)
        self.size: int = 1 + sum(child.size for child in children)

    def evaluate(self, run: Run) -> Any:
        """Return the value of the node. Raises `EvaluationError` and `CostLimitExceeded`."""
        raise NotImplementedError


class Constant(Node):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def evaluate(self, run: Run) -> Any:
        return self.value


class Name(Node):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def evaluate(self, run: Run) -> Any:
        try:
            return run.names[self.name]
        except KeyError:
            raise MissingValue(f"{self.name} is not defined") from None


class Select(Node):
    """`operand.field`"""

    def __init__(self, operand: Node, field: str) -> None:
        super().__init__(operand)
        self.operand = operand
        self.field = field

    def evaluate(self, run: Run) -> Any:
        operand = self.operand.evaluate(run)
        if isinstance(operand, dict):
            if self.field in operand:
                return operand[self.field]
            raise MissingValue(f"no such field: {self.field}")
        failure = MissingValue if operand is None else EvaluationError
        raise failure(f"no such field: {self.field}, because the value is {kind_of(operand)}")


class Has(Select):
    """`has(operand.field)`"""

    def evaluate(self, run: Run) -> bool:
        operand = self.operand.evaluate(run)
        if not isinstance(operand, dict):
            raise EvaluationError(f"has(….{self.field}) needs an object, not {kind_of(operand)}")
        return self.field in operand


class Default(Node):
    """`default(operand, otherwise)`: the value of `otherwise` if that of `operand` is null or does not exist."""

    def __init__(self, operand: Node, otherwise: Node) -> None:
        super().__init__(operand, otherwise)
        self.operand = operand
        self.otherwise = otherwise

    def evaluate(self, run: Run) -> Any:
        try:
            value = self.operand.evaluate(run)
        except MissingValue:
            run.budget.consume(ERROR_STEPS)
            value = None
        return self.otherwise.evaluate(run) if value is None else value


class Index(Node):
    """`operand[index]`"""

    def __init__(self, operand: Node, index: Node) -> None:
        super().__init__(operand, index)
        self.operand = operand
        self.index = index

    def evaluate(self, run: Run) -> Any:
        operand, index = self.operand.evaluate(run), self.index.evaluate(run)
        if isinstance(operand, dict):
            if not isinstance(index, str):
                raise EvaluationError(f"the key of an object must be a text, not {kind_of(index)}")
            if has_key(operand, index, run):
                return operand[index]
            raise MissingValue(f"no such field: {index[:200]}")
        if isinstance(operand, list):
            if isinstance(index, float) and index.is_integer():
                index = int(index)
            if not isinstance(index, int) or isinstance(index, bool):
                raise EvaluationError(f"the index of a list must be an integer, not {kind_of(index)}")
            if 0 <= index < len(operand):
                return operand[index]
            raise MissingValue(f"no such index: a list has {len(operand)} items, counted from 0")
        failure = MissingValue if operand is None else EvaluationError
        raise failure(f"[…] needs a list or an object, not {kind_of(operand)}")


class ListOf(Node):
    def __init__(self, items: Sequence[Node]) -> None:
        super().__init__(*items)
        self.items = items

    def evaluate(self, run: Run) -> list[Any]:
        return [item.evaluate(run) for item in self.items]


class MapOf(Node):
    def __init__(self, entries: Sequence[tuple[Node, Node]]) -> None:
        super().__init__(*(node for entry in entries for node in entry))
        self.entries = entries

    def evaluate(self, run: Run) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value in self.entries:
            key = key_node.evaluate(run)
            if not isinstance(key, str):
                raise EvaluationError(f"the key of an object must be a text, not {kind_of(key)}")
            if has_key(result, key, run):
                raise EvaluationError(f"an object has the key {key[:200]} twice")
            result[key] = value.evaluate(run)
        return result


class Negative(Node):
    def __init__(self, operand: Node) -> None:
        super().__init__(operand)
        self.operand = operand

    def evaluate(self, run: Run) -> Any:
        return negative(self.operand.evaluate(run), run)


class Not(Node):
    def __init__(self, operand: Node) -> None:
        super().__init__(operand)
        self.operand = operand

    def evaluate(self, run: Run) -> bool:
        return not _boolean("!", self.operand.evaluate(run))


class Operation(Node):
    """A binary operation other than && and ||."""

    def __init__(self, operator: str, left: Node, right: Node) -> None:
        super().__init__(left, right)
        self.operator = operator
        self.left = left
        self.right = right
        self.apply = OPERATORS[operator]

    def evaluate(self, run: Run) -> Any:
        return self.apply(self.left.evaluate(run), self.right.evaluate(run), run)


class Logic(Node):
    """Operands joined by && or ||."""

    def __init__(self, sign: str, operands: Sequence[Node]) -> None:
        super().__init__(*operands)
        self.sign = sign
        self.operands = operands

    def evaluate(self, run: Run) -> bool:
        return _short_circuit(run, self.sign, self.sign == "||", self.operands, lambda operand: operand.evaluate(run))


class Conditional(Node):
    """`condition ? yes : no`"""

    def __init__(self, condition: Node, yes: Node, no: Node) -> None:
        super().__init__(condition, yes, no)
        self.condition = condition
        self.yes = yes
        self.no = no

    def evaluate(self, run: Run) -> Any:
        return (self.yes if _boolean("?", self.condition.evaluate(run)) else self.no).evaluate(run)


class Call(Node):
    def __init__(self, name: str, function: Function, arguments: Sequence[Node]) -> None:
        super().__init__(*arguments)
        self.name = name
        self.function = function
        self.arguments = arguments

    def evaluate(self, run: Run) -> Any:
        return self.function.apply(self.name, [argument.evaluate(run) for argument in self.arguments], run)


class Macro(Node):
    """Base class of loops over a list or the keys of an object. `variable` is the name of the current item."""

    def __init__(self, macro: str, over: Node, variable: str, *bodies: Node) -> None:
        super().__init__(over, *bodies)
        self.macro = macro
        self.over = over
        self.variable = variable
        self.bodies = bodies
        self._steps = 1 + sum(body.size for body in bodies)

    def items(self, run: Run) -> Iterable[Any]:
        value = self.over.evaluate(run)
        if not isinstance(value, list | dict):
            raise EvaluationError(f"{self.macro} needs a list or an object, not {kind_of(value)}")
        for item in value:
            run.budget.consume(self._steps)
            yield item

    def inner(self, run: Run) -> Run:
        run.budget.consume(INNER_STEPS + len(run.names) // NAMES_PER_STEP)
        return Run({**run.names, self.variable: None}, run.budget, run.real)


class Quantifier(Macro):
    """`all` and `exists`"""

    def __init__(self, macro: str, over: Node, variable: str, condition: Node) -> None:
        super().__init__(macro, over, variable, condition)
        self.condition = condition

    def evaluate(self, run: Run) -> bool:
        inner = self.inner(run)

        def predicate(item: Any) -> Any:
            inner.names[self.variable] = item
            return self.condition.evaluate(inner)

        return _short_circuit(run, self.macro, self.macro == "exists", self.items(run), predicate)


class Collection(Macro):
    """`map` and `filter`: the value of `result`, or the item, for each item for which `condition` is true."""

    def __init__(
        self, macro: str, over: Node, variable: str, condition: Node | None = None, result: Node | None = None
    ) -> None:
        super().__init__(macro, over, variable, *(body for body in (condition, result) if body is not None))
        self.condition = condition
        self.result = result

    def evaluate(self, run: Run) -> Any:
        return self.collected(run)

    def collected(self, run: Run) -> list[Any]:
        inner = self.inner(run)
        collected: list[Any] = []
        for item in self.items(run):
            inner.names[self.variable] = item
            if self.condition is None or _boolean(self.macro, self.condition.evaluate(inner)):
                collected.append(item if self.result is None else self.result.evaluate(inner))
        return collected


class ExistsOne(Collection):
    """`exists_one`: whether the condition is true for exactly one item."""

    def evaluate(self, run: Run) -> bool:
        return len(self.collected(run)) == 1


class Keyed(Macro):
    """`sort_by`, `unique_by` and `group_by`: the items in the order of a key, the first item of each key, and an object
    of the items of each key.
    """

    def __init__(self, macro: str, over: Node, variable: str, key: Node) -> None:
        super().__init__(macro, over, variable, key)
        self.key = key
        self.apply = KEYED[macro]

    def evaluate(self, run: Run) -> Any:
        inner = self.inner(run)
        items: list[Any] = []
        keys: list[Any] = []
        for item in self.items(run):
            inner.names[self.variable] = item
            items.append(item)
            keys.append(self.key.evaluate(inner))
        return self.apply(run, items, keys)


def _short_circuit(
    run: Run, sign: str, decisive: bool, items: Iterable[Item], predicate: Callable[[Item], Any]
) -> bool:
    """Return `decisive` if the predicate has this value for an item, even if it fails for others; else the opposite.

    Raises the first `EvaluationError` if no item is decisive.
    """
    failure: EvaluationError | None = None
    for item in items:
        try:
            if _boolean(sign, predicate(item)) is decisive:
                return decisive
        except EvaluationError as error:
            run.budget.consume(ERROR_STEPS)
            failure = failure or error
    if failure is not None:
        raise failure
    return not decisive


def _boolean(sign: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise EvaluationError(f"{sign} needs true or false, not {kind_of(value)}")
