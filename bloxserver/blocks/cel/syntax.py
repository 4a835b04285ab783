"""The parser: from the text of an expression to its syntax tree."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from math import isfinite
from typing import NamedTuple

from bloxserver.blocks.cel import nodes
from bloxserver.blocks.cel.conversions import TYPE_NAMES
from bloxserver.blocks.cel.function import Function
from bloxserver.blocks.cel.functions import FUNCTIONS
from bloxserver.blocks.cel.list_functions import KEYED
from bloxserver.blocks.cel.nodes import Node
from bloxserver.blocks.cel.patterns import check_pattern
from bloxserver.blocks.cel.values import Budget, TypeName
from bloxserver.blocks.names import INDEX

MAX_CHARACTERS = 2_000
MAX_NESTING = 32
MAX_DEPTH = 100
MAX_SHOWN = 64
MAX_SUGGESTED = 32
"""The time of the search for a similar name grows with the square of its length."""
MAX_LISTED = 10
MAX_PATTERN_STEPS = 10_000
"""The limit for the check of its regular expressions, if there is no other budget."""

_TOKENS = r"""
    |(?P<raw>[rR](?:\"\"\"[\s\S]*?\"\"\"|'''[\s\S]*?'''|"[^"\n]*"|'[^'\n]*'))
    |(?P<text>\"\"\"(?:[^\\]|\\[\s\S])*?\"\"\"|'''(?:[^\\]|\\[\s\S])*?'''|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(?P<number>0[xX][0-9a-fA-F]+|(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<sign>\*\*|//|&&|\|\||[<>=!]=|[-+*/%^<>!?:.,()\[\]{}])"""
TOKEN = re.compile(rf"(?P<space>\s+|//[^\n]*){_TOKENS}", re.VERBOSE)
ARITHMETIC_TOKEN = re.compile(rf"(?P<space>\s+){_TOKENS}", re.VERBOSE)
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
ESCAPE = re.compile(r"\\(?:[xX]([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-3][0-7]{2})|(.))", re.DOTALL)
ESCAPED = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"} | {c: c for c in "\\\"'`?"}
PRECEDENCES = {"||": 1, "&&": 2, "+": 4, "-": 4, "*": 5, "/": 5, "%": 5, "//": 5}
PRECEDENCES |= dict.fromkeys(("==", "!=", "<", "<=", ">", ">=", "in"), 3)
POWERS = ("**", "^")
KEYWORDS: dict[str, object] = {"true": True, "false": False, "null": None}
MACROS = ("all", "exists", "exists_one", "existsOne", "map", "filter", *KEYED)
NAMESPACE = "math"
CORRECTIONS = {"=": "==", "&": "&&", "|": "||", "and": "&&", "or": "||", "not": "!", "<>": "!="}


class Token(NamedTuple):
    kind: str
    text: str
    position: int


def parse(
    text: str,
    names: Collection[str],
    functions: Mapping[str, Function] = FUNCTIONS,
    *,
    arithmetic: bool = False,
    budget: Budget | None = None,
) -> Node:
    """Return the tree of an expression over the names. With `arithmetic`, it can have `**`, `^` and, instead of
    comments, `//`. The check of its regular expressions consumes steps of the budget.

    Raises `ValueError` with the reason and the position for an expression that is invalid, too long or too deep.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"an expression must have at most {MAX_CHARACTERS} characters")
    parser = _Parser(text, names, functions, arithmetic, budget or Budget(MAX_PATTERN_STEPS))
    return parser.parse()


class _Parser:
    def __init__(
        self,
        text: str,
        names: Collection[str],
        functions: Mapping[str, Function],
        arithmetic: bool,
        budget: Budget,
    ) -> None:
        self._tokens = _tokens(text, ARITHMETIC_TOKEN if arithmetic else TOKEN)
        self._at = 0
        self._names = names
        self._functions = functions
        self._arithmetic = arithmetic
        self._variables: list[str] = []
        self._nesting = 0
        self._budget = budget

    def parse(self) -> Node:
        if self._token.kind == "end":
            raise ValueError("the expression is empty")
        node = self._expression()
        if self._token.kind != "end":
            raise self._unexpected()
        return node

    @property
    def _token(self) -> Token:
        return self._tokens[self._at]

    def _next(self) -> Token:
        token = self._tokens[self._at]
        self._at += token.kind != "end"
        return token

    def _is(self, *signs: str) -> bool:
        return self._token.kind in ("sign", "name") and self._token.text in signs

    def _accept(self, sign: str) -> bool:
        found = self._is(sign)
        self._at += found
        return found

    def _expect(self, sign: str) -> None:
        if not self._accept(sign):
            raise self._unexpected(f"{sign} is missing")

    def _unexpected(self, reason: str | None = None) -> ValueError:
        token = self._token
        if token.text in CORRECTIONS:
            reason = f"{token.text} is not supported, write {CORRECTIONS[token.text]}"
        found = "end of the expression" if token.kind == "end" else _shown(token.text)
        return _error(reason or f"unexpected {found}", token)

    def _checked(self, node: Node) -> Node:
        if node.depth > MAX_DEPTH:
            raise _error(f"more than {MAX_DEPTH} nested operations", self._token)
        return node

    def _expression(self) -> Node:
        self._nesting += 1
        if self._nesting > MAX_NESTING:
            raise _error(f"nested more than {MAX_NESTING} levels deep", self._token)
        node = self._binary(1)
        if self._accept("?"):
            yes = self._binary(1)
            self._expect(":")
            node = nodes.Conditional(node, yes, self._expression())
        self._nesting -= 1
        return self._checked(node)

    def _binary(self, minimum: int) -> Node:
        left = self._unary()
        while self._token.kind in ("sign", "name") and (precedence := PRECEDENCES.get(self._token.text, 0)) >= minimum:
            sign = self._next().text
            right = self._binary(precedence + 1)
            if sign in ("&&", "||"):
                left = nodes.Logic(sign, [left, right, *self._operands(sign, precedence)])
            else:
                left = nodes.Operation(sign, left, right)
            self._checked(left)
        return left

    def _operands(self, sign: str, precedence: int) -> Iterator[Node]:
        while self._accept(sign):
            yield self._binary(precedence + 1)

    def _unary(self) -> Node:
        signs = []
        while self._is("-", "!"):
            signs.append(self._next().text)
        node = self._member()
        if self._arithmetic and self._is(*POWERS):
            sign = self._next().text
            node = nodes.Operation(sign, node, self._power())
        for sign in reversed(signs):
            node = self._checked(nodes.Negative(node) if sign == "-" else nodes.Not(node))
        return node

    def _power(self) -> Node:
        self._nesting += 1
        if self._nesting > MAX_NESTING:
            raise _error(f"nested more than {MAX_NESTING} levels deep", self._token)
        node = self._unary()
        self._nesting -= 1
        return node

    def _member(self) -> Node:
        node = self._primary()
        while self._is(".", "["):
            if self._accept("["):
                node = nodes.Index(node, self._expression())
                self._expect("]")
            else:
                node = self._dotted(node)
            self._checked(node)
        return node

    def _dotted(self, target: Node) -> Node:
        self._next()
        field = self._token
        if field.kind != "name":
            raise self._unexpected('a name must follow the dot; for other keys write ["key"]')
        self._next()
        if not self._is("("):
            return nodes.Select(target, field.text)
        if field.text in MACROS:
            return self._macro(field.text, target)
        if field.text == "default":
            return self._default(field, [target])
        return self._call(field, field.text, [target])

    def _primary(self) -> Node:
        token = self._next()
        if token.kind in ("number", "text", "raw"):
            return nodes.Constant(_value(token))
        if token.kind == "name" and token.text != "in":
            return self._named(token)
        if token.kind == "sign" and token.text == "(":
            node = self._expression()
            self._expect(")")
            return node
        if token.kind == "sign" and token.text == "[":
            return nodes.ListOf(self._list("]"))
        if token.kind == "sign" and token.text == "{":
            return self._map()
        self._at -= token.kind != "end"
        raise self._unexpected()

    def _named(self, token: Token) -> Node:
        name = token.text
        if name in KEYWORDS:
            return nodes.Constant(KEYWORDS[name])
        is_known = name in self._names or name in self._variables
        if self._is("("):
            if name == "default":
                return self._default(token, [])
            return self._has() if name == "has" else self._call(token, name, [])
        if name == NAMESPACE and not is_known and self._is("."):
            self._next()
            function = self._next()
            return self._call(function, f"{name}.{function.text}", [])
        if is_known:
            return nodes.Name(name)
        if name in TYPE_NAMES:
            return nodes.Constant(TypeName(name))
        self._at -= 1
        if name in CORRECTIONS:
            raise self._unexpected()
        raise _error(f"{_shown(name)} is not defined{self._suggestion(name)}", token)

    def _suggestion(self, name: str) -> str:
        if name == INDEX:
            return "; only the config of a listener with for_each has an index"
        known = sorted({*self._names, *self._variables})
        nearest = _nearest(name, known)
        if nearest or not 0 < len(known) <= MAX_LISTED:
            return nearest
        return f"; a path must start with {known[0]}" if len(known) == 1 else f"; defined are {', '.join(known)}"

    def _has(self) -> Node:
        self._next()
        token = self._token
        node = self._expression()
        self._expect(")")
        if type(node) is not nodes.Select:
            raise _error("the argument of has must be a field, like has(payload.name)", token)
        return nodes.Has(node.operand, node.field)

    def _default(self, token: Token, arguments: list[Node]) -> Node:
        self._expect("(")
        arguments = [*arguments, *self._list(")")]
        if len(arguments) != 2:
            raise _error('default requires two values, like default(payload.name, "none")', token)
        return nodes.Default(*arguments)

    def _call(self, token: Token, name: str, arguments: list[Node]) -> Node:
        function = self._functions.get(name)
        if function is None:
            raise _error(
                f"there is no function {_shown(name)}{_nearest(name, [*self._functions, 'has', 'default'])}", token
            )
        self._expect("(")
        arguments = [*arguments, *self._list(")")]
        if not function.accepts(len(arguments)):
            raise _error(f"wrong number of arguments; use {function.signature(name)}", token)
        if name == "matches" and isinstance(arguments[1], nodes.Constant) and isinstance(arguments[1].value, str):
            check_pattern(arguments[1].value, self._budget)
        return self._checked(nodes.Call(name, function, arguments))

    def _macro(self, macro: str, over: Node) -> Node:
        start = self._next()
        variable = self._next()
        if variable.kind != "name" or variable.text in KEYWORDS or variable.text == "in" or not self._accept(","):
            raise _error(f"{macro} must begin with a name and a comma, like {macro}(item, item.price > 3)", start)
        self._variables.append(variable.text)
        bodies = self._list(")")
        self._variables.pop()
        if len(bodies) != 1 and not (macro == "map" and len(bodies) == 2):
            raise _error(f"{macro} requires a name and one expression", start)
        return self._checked(_macro(macro, over, variable.text, bodies))

    def _list(self, end: str) -> list[Node]:
        """Parse expressions up to the closing bracket."""
        items: list[Node] = []
        while not self._accept(end):
            items.append(self._expression())
            if not self._accept(","):
                self._expect(end)
                break
        return items

    def _map(self) -> Node:
        entries: list[tuple[Node, Node]] = []
        while not self._accept("}"):
            key = self._expression()
            self._expect(":")
            entries.append((key, self._expression()))
            if not self._accept(","):
                self._expect("}")
                break
        return self._checked(nodes.MapOf(entries))


def _macro(macro: str, over: Node, variable: str, bodies: list[Node]) -> Node:
    if macro in ("all", "exists"):
        return nodes.Quantifier(macro, over, variable, bodies[0])
    if macro == "map":
        condition = bodies[0] if len(bodies) == 2 else None
        return nodes.Collection(macro, over, variable, condition, bodies[-1])
    if macro in KEYED:
        return nodes.Keyed(macro, over, variable, bodies[0])
    kind = nodes.Collection if macro == "filter" else nodes.ExistsOne
    return kind(macro, over, variable, bodies[0])


def _tokens(text: str, pattern: re.Pattern[str]) -> list[Token]:
    tokens: list[Token] = []
    position = 0
    while position < len(text):
        found = pattern.match(text, position)
        if found is None:
            character = text[position]
            hint = f", write {CORRECTIONS[character]}" if character in CORRECTIONS else ""
            reason = "a text is not closed" if character in "\"'" else f"{_shown(character)} is not supported{hint}"
            raise _error(reason, Token("", character, position))
        kind = str(found.lastgroup)
        if kind == "name" and tokens and tokens[-1].kind == "number" and _end(tokens[-1]) == position:
            raise _error(f"{_shown(tokens[-1].text + found[0])} is not a number", tokens[-1])
        if kind != "space":
            tokens.append(Token(kind, found[0], position))
        position = found.end()
    return [*tokens, Token("end", "", len(text))]


def _end(token: Token) -> int:
    return token.position + len(token.text)


def _value(token: Token) -> int | float | str:
    text = token.text
    if token.kind == "number":
        number = int(text, 16) if text[:2] in ("0x", "0X") else int(text) if text.isdigit() else float(text)
        # 2**63 is accepted, because a minus may precede it.
        if not (number <= 2**63 if isinstance(number, int) else isfinite(number)):
            raise _error(f"{_shown(text)} is too large", token)
        return number
    inner = text.lstrip("rR")
    quotes = 3 if len(inner) >= 6 and inner[:3] in ('"""', "'''") else 1
    inner = inner[quotes:-quotes]
    return inner if token.kind == "raw" else ESCAPE.sub(lambda found: _unescaped(found, token), inner)


def _unescaped(found: re.Match[str], token: Token) -> str:
    if found[5] is not None:
        if found[5] not in ESCAPED:
            raise _error(f"\\{_shown(found[5])} is not a valid escape, write \\\\ for a backslash", token)
        return ESCAPED[found[5]]
    code = int(found[4], 8) if found[4] else int(found[1] or found[2] or found[3], 16)
    if code > 0x10FFFF or 0xD800 <= code < 0xE000:
        raise _error(f"{found[0]} is not a character", token)
    return chr(code)


def _nearest(name: str, known: Collection[str]) -> str:
    found = get_close_matches(name, known, n=1) if len(name) <= MAX_SUGGESTED else []
    return f"; did you mean {found[0]}?" if found else ""


def _shown(text: str) -> str:
    return text[:MAX_SHOWN] if text.isprintable() else ascii(text[:MAX_SHOWN])


def _error(reason: str, token: Token) -> ValueError:
    return ValueError(f"{reason} (at character {token.position + 1})")
