"""Find the names that a Python snippet uses and does not define: modules, builtins and members of modules.

The snippet is parsed and not run. Each name has a statement that fails if the interpreter does not have the name.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from bloxserver.blocks.names import ROOTS

MAX_NAMES = 200
"""The maximum number of names that are checked. Further ones fail when the snippet runs."""
PREDEFINED = ROOTS | {"__file__", "__name__"}
FILENAME = "<snippet>"

# Warnings about the snippet's code, like invalid escapes, must not appear in the server's log.
warnings.filterwarnings("ignore", module=FILENAME)


class ExternalName(NamedTuple):
    line: int
    statement: str
    """Fails without side effects if the name does not exist; empty if the name exists but every use of it fails."""
    reason: str = ""
    """Why every use fails."""


def external_names(code: str) -> list[ExternalName]:
    """Return the names, each once, in the order in which they are to be checked.

    Names in a `try` with handlers are left out, because the snippet may expect the failure. The list is empty for a
    snippet that this Python version cannot parse, because its syntax may be newer.
    """
    try:
        tree = ast.parse(code, FILENAME)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    nodes = list(_unguarded(tree))
    bound = frozenset(_bound(tree))
    found: dict[str, ExternalName] = {}
    for each in (*_names(nodes, bound), *_imports(nodes), *_members(nodes, tree)):
        found.setdefault(each.statement or each.reason, each)
    return list(found.values())[:MAX_NAMES]


def _unguarded(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes outside of `try` blocks with handlers, in the order of the text. Annotations are skipped, because
    they are not evaluated.
    """
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
    """Yield the names that the snippet binds, in any scope."""
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


def _names(nodes: list[ast.AST], bound: frozenset[str]) -> Iterator[ExternalName]:
    for node in nodes:
        if isinstance(node, ast.Name) and node.id not in bound | PREDEFINED:
            if node.id == "open":
                yield ExternalName(node.lineno, "", "open: a snippet has no files")
            else:
                yield ExternalName(node.lineno, node.id)


def _imports(nodes: list[ast.AST]) -> Iterator[ExternalName]:
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield ExternalName(node.lineno, f"import {alias.name}")
        elif isinstance(node, ast.ImportFrom) and node.module not in (None, "__future__"):
            for alias in node.names:
                yield ExternalName(node.lineno, f"from {node.module} import {alias.name}")


def _members(nodes: list[ast.AST], tree: ast.AST) -> Iterator[ExternalName]:
    """Yield the members of modules that the snippet uses, like `math.pi`."""
    modules = _modules(tree)
    if not modules or any(isinstance(node, ast.Name) and node.id == "hasattr" for node in nodes):
        return
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and isinstance(node.ctx, ast.Load):
            statement = modules.get(node.value.id)
            if statement is not None:
                yield ExternalName(node.lineno, f"{statement}\n{node.value.id}.{node.attr}")


def _modules(tree: ast.AST) -> dict[str, str]:
    """Return the names that are bound to one module only, with their import statements."""
    names = list(_bound(tree))
    return {
        alias.asname or alias.name: f"import {alias.name}" + (f" as {alias.asname}" if alias.asname else "")
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if ("." not in alias.name or alias.asname) and names.count(alias.asname or alias.name) == 1
    }
