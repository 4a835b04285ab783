"""What a snippet of Python names that is not in the snippet: modules, builtins, members of modules.

The snippet is parsed and not run. Each name comes with a statement that fails where the interpreter does not have it.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from typing import NamedTuple

MAX_NAMES = 200
"""Of one snippet; further ones are left to its run."""
GIVEN = frozenset({"payload", "__file__", "__name__"})
FILENAME = "<snippet>"

# What Python would print about a snippet's style, like an unknown escape, is not the server's concern.
warnings.filterwarnings("ignore", module=FILENAME)


class OuterName(NamedTuple):
    line: int
    statement: str
    """Fails without effect where the name is not there; empty: the name is there but every use of it fails."""
    reason: str = ""
    """Why every use fails."""


def outer_names(code: str) -> list[OuterName]:
    """All that are certain to be used, each once, in the order in which they are to be tried.

    Empty for a snippet that this Python cannot parse, whose syntax may be newer. What stands in a `try` with handlers
    is left out: the snippet may expect its failure.
    """
    try:
        tree = ast.parse(code, FILENAME)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    nodes = list(_unguarded(tree))
    bound = frozenset(_bound(tree))
    found: dict[str, OuterName] = {}
    for each in (*_names(nodes, bound), *_imports(nodes), *_members(nodes, tree)):
        found.setdefault(each.statement or each.reason, each)
    return list(found.values())[:MAX_NAMES]


def _unguarded(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes whose failure the snippet does not catch, in the order of the text; annotations are not evaluated."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.Try) and node.handlers:
            children: list[ast.AST] = [*node.handlers, *node.orelse, *node.finalbody]
        else:
            unused = {getattr(node, "annotation", None), getattr(node, "returns", None)}
            children = [child for child in ast.iter_child_nodes(node) if child not in unused]
        waiting.extend(reversed(children))


def _bound(tree: ast.AST) -> Iterator[str]:
    """The names to which anything in the snippet, in whatever scope, gives a value."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(name, ast.Store() | ast.Del()):
                yield name
            case ast.arg(name) | ast.FunctionDef(name) | ast.AsyncFunctionDef(name) | ast.ClassDef(name):
                yield name
            case ast.alias(name, alias):
                yield alias or name.partition(".")[0]
            case ast.ExceptHandler(_, str(name)) | ast.MatchAs(_, str(name)) | ast.MatchStar(str(name)):
                yield name
            case ast.MatchMapping(_, _, str(name)):
                yield name


def _names(nodes: list[ast.AST], bound: frozenset[str]) -> Iterator[OuterName]:
    for node in nodes:
        if isinstance(node, ast.Name) and node.id not in bound | GIVEN:
            if node.id == "open":
                yield OuterName(node.lineno, "", "open: a snippet has no files")
            else:
                yield OuterName(node.lineno, node.id)


def _imports(nodes: list[ast.AST]) -> Iterator[OuterName]:
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield OuterName(node.lineno, f"import {alias.name}")
        elif isinstance(node, ast.ImportFrom) and node.module not in (None, "__future__"):
            for alias in node.names:
                yield OuterName(node.lineno, f"from {node.module} import {alias.name}")


def _members(nodes: list[ast.AST], tree: ast.AST) -> Iterator[OuterName]:
    """What is asked of modules, like `math.pi`."""
    modules = _modules(tree)
    if not modules or any(isinstance(node, ast.Name) and node.id == "hasattr" for node in nodes):
        return
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and isinstance(node.ctx, ast.Load):
            statement = modules.get(node.value.id)
            if statement is not None:
                yield OuterName(node.lineno, f"{statement}\n{node.value.id}.{node.attr}")


def _modules(tree: ast.AST) -> dict[str, str]:
    """The names that stand for one module and nothing else, each with its import."""
    names = list(_bound(tree))
    return {
        alias.asname or alias.name: f"import {alias.name}" + (f" as {alias.asname}" if alias.asname else "")
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if ("." not in alias.name or alias.asname) and names.count(alias.asname or alias.name) == 1
    }
