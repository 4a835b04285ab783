"""The tree of an expression; each node gives its value in a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from bloxserver.blocks.cel.functions import Function
from bloxserver.blocks.cel.values import OPERATORS, Failure, Run, kind_of, negative

Item = TypeVar("Item")


class Node:
    """`depth` and `size` count the nodes on the longest way down, and all of them."""

    def __init__(self, *children: Node) -> None:
        self.children = children
        self.depth: int = 1 + max((child.depth for child in children), default=0)
        self.size: int = 1 + sum(child.size for child in children)

    def evaluate(self, run: Run) -> Any:
        """Raises `Failure` and `CostLimitExceeded`."""
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
            raise Failure(f"there is no {self.name} here") from None


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
            raise Failure(f"no such field: {self.field}")
        raise Failure(f"no such field: {self.field}, as it is asked of {kind_of(operand)}")


class Has(Select):
    """`has(operand.field)`"""

    def evaluate(self, run: Run) -> bool:
        operand = self.operand.evaluate(run)
        if not isinstance(operand, dict):
            raise Failure(f"has({self.field}) is asked of {kind_of(operand)}, not of an object")
        return self.field in operand


class Index(Node):
    """`operand[index]`"""

    def __init__(self, operand: Node, index: Node) -> None:
        super().__init__(operand, index)
        self.operand = operand
        self.index = index

    def evaluate(self, run: Run) -> Any:
        operand, index = self.operand.evaluate(run), self.index.evaluate(run)
        if isinstance(operand, dict):
            if isinstance(index, str) and index in operand:
                return operand[index]
            raise Failure(f"no such field: {str(index)[:200]}")
        if isinstance(operand, list):
            if isinstance(index, float) and index.is_integer():
                index = int(index)
            if not isinstance(index, int) or isinstance(index, bool):
                raise Failure(f"the index of a list is a whole number, not {kind_of(index)}")
            if 0 <= index < len(operand):
                return operand[index]
            raise Failure(f"no such index: a list has {len(operand)} items, counted from 0")
        raise Failure(f"[…] needs a list or an object, not {kind_of(operand)}")


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
                raise Failure(f"the key of an object is a text, not {kind_of(key)}")
            if key in result:
                raise Failure(f"an object is given the key {key[:200]} twice")
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
        return not _truth("!", self.operand.evaluate(run))


class Operation(Node):
    """Two operands and what stands between them, other than && and ||."""

    def __init__(self, operator: str, left: Node, right: Node) -> None:
        super().__init__(left, right)
        self.operator = operator
        self.left = left
        self.right = right
        self.apply = OPERATORS[operator]

    def evaluate(self, run: Run) -> Any:
        return self.apply(self.left.evaluate(run), self.right.evaluate(run), run)


class Logic(Node):
    """Operands between && or ||."""

    def __init__(self, sign: str, operands: Sequence[Node]) -> None:
        super().__init__(*operands)
        self.sign = sign
        self.operands = operands

    def evaluate(self, run: Run) -> bool:
        return _decided(self.sign, self.sign == "||", self.operands, lambda operand: operand.evaluate(run))


class Conditional(Node):
    """`condition ? yes : no`"""

    def __init__(self, condition: Node, yes: Node, no: Node) -> None:
        super().__init__(condition, yes, no)
        self.condition = condition
        self.yes = yes
        self.no = no

    def evaluate(self, run: Run) -> Any:
        return (self.yes if _truth("?", self.condition.evaluate(run)) else self.no).evaluate(run)


class Call(Node):
    def __init__(self, name: str, function: Function, arguments: Sequence[Node]) -> None:
        super().__init__(*arguments)
        self.name = name
        self.function = function
        self.arguments = arguments

    def evaluate(self, run: Run) -> Any:
        return self.function.apply(self.name, [argument.evaluate(run) for argument in self.arguments], run)


class Macro(Node):
    """Base of what goes through a list, or the keys of an object; `variable` stands for what it is at."""

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
            raise Failure(f"{self.macro} needs a list or an object, not {kind_of(value)}")
        for item in value:
            run.budget.spend(self._steps)
            yield item

    def inner(self, run: Run) -> Run:
        return Run({**run.names, self.variable: None}, run.budget, run.real)


class Quantifier(Macro):
    """`all` and `exists`"""

    def __init__(self, macro: str, over: Node, variable: str, condition: Node) -> None:
        super().__init__(macro, over, variable, condition)
        self.condition = condition

    def evaluate(self, run: Run) -> bool:
        inner = self.inner(run)

        def judge(item: Any) -> Any:
            inner.names[self.variable] = item
            return self.condition.evaluate(inner)

        return _decided(self.macro, self.macro == "exists", self.items(run), judge)


class Collection(Macro):
    """`map` and `filter`: what `result` gives for each item, or the item itself, where `condition` holds."""

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
            if self.condition is None or _truth(self.macro, self.condition.evaluate(inner)):
                collected.append(item if self.result is None else self.result.evaluate(inner))
        return collected


class ExistsOne(Collection):
    """`exists_one`: whether the condition holds for one item and no other."""

    def evaluate(self, run: Run) -> bool:
        return len(self.collected(run)) == 1


def _decided(sign: str, decisive: bool, items: Iterable[Item], judge: Callable[[Item], Any]) -> bool:
    """`decisive` if that is what the judge says of one item, whether or not it fails for others; else the opposite."""
    failure: Failure | None = None
    for item in items:
        try:
            if _truth(sign, judge(item)) is decisive:
                return decisive
        except Failure as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return not decisive


def _truth(sign: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise Failure(f"{sign} needs true or false, not {kind_of(value)}")
