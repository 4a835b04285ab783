"""Rules of the code that linters do not check. import-linter checks the layers; see pyproject.toml."""

from __future__ import annotations

import ast
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

import bloxserver

PACKAGE = Path(bloxserver.__file__).parent
MIGRATIONS = PACKAGE.parent / "migrations"
TESTS = Path(__file__).parent
LONGEST = 400
WEB_FREE = ("services", "queries", "blocks", "engine", "organism", "clients", "api/models")
ENDS_TRANSACTIONS = {"models/database.py", "models/sqlite_connection.py"}
"""The modules that may commit or roll back; see the docstring of `bloxserver.models.database`. The second one passes
the rollback of a connection on.
"""


def modules(*folders: str) -> dict[str, Path]:
    """Return the modules of these folders by their path; by default all of the package, and the migrations."""
    roots = [PACKAGE / folder for folder in folders] or [PACKAGE, MIGRATIONS]
    found = {path.relative_to(base(path)).as_posix(): path for root in roots for path in root.rglob("*.py")}
    assert found, folders
    return found


def base(path: Path) -> Path:
    return PACKAGE if path.is_relative_to(PACKAGE) else PACKAGE.parent


def nodes(path: Path) -> Iterator[ast.AST]:
    text = path.read_text(encoding="utf-8")
    # Before Python 3.11.8, this fails if another thread prints a traceback meanwhile, which parses too (python/cpython
    # issue 106905). Threads change within the parser only when it starts a garbage collection.
    gc.disable()
    try:
        return ast.walk(ast.parse(text))
    finally:
        gc.enable()


def imported(path: Path) -> Iterator[str]:
    """Return the full names of all imports of a module."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_only_the_database_module_commits() -> None:
    ending = {
        name
        for name, path in modules().items()
        for node in nodes(path)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("commit", "rollback")
    }
    assert ending == ENDS_TRANSACTIONS


THREADS = {
    "cli/startup.py": "joins a thread",
    "llm/provider_clients.py": "imports a library",
    "observability/tracing.py": "joins a thread",
}
"""The modules that move work to a thread, and the work. A thread holds the interpreter, so that the work of users in it
delays the event loop: see docs/security.md, "Work of users".
"""


def test_work_of_users_does_not_run_in_threads() -> None:
    names = {"to_thread", "run_in_executor", "ThreadPoolExecutor", "ProcessPoolExecutor"}
    moving = {
        name
        for name, path in modules().items()
        for node in nodes(path)
        if (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.alias) and node.name in names)
    }
    assert moving == set(THREADS)


STATUS_WRITERS = {"services/transitions.py": "ExecutionRecord", "services/flows.py": "FlowRecord"}
"""The only module that changes the status of an execution, and the only one that changes that of a flow."""


def test_one_module_changes_the_status_of_executions_and_one_that_of_flows() -> None:
    """An UPDATE sets its columns by `.values(…)`; an attribute of a row is set by an assignment."""
    writers = set()
    for name, path in modules().items():
        for node in nodes(path):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("values", "_update")
            ):
                if any(keyword.arg == "status" for keyword in node.keywords):
                    writers.add(name)
            elif isinstance(node, ast.Assign):
                targets = [target for target in node.targets if isinstance(target, ast.Attribute)]
                if any(target.attr == "status" and "step" not in ast.unparse(target.value) for target in targets):
                    writers.add(name)
    assert {name for name in writers if name.startswith(("services/", "queries/", "engine/"))} == set(STATUS_WRITERS)


def test_only_the_api_imports_the_web_framework() -> None:
    for folder in WEB_FREE:
        for name, path in modules(folder).items():
            frameworks = {one for one in imported(path) if one.split(".")[0] in ("fastapi", "starlette", "uvicorn")}
            assert not frameworks, name
    domain = {*imported(PACKAGE / "errors.py"), *imported(PACKAGE / "plans.py"), *imported(PACKAGE / "settings.py")}
    assert not {name for name in domain if name.startswith(("fastapi", "starlette", "bloxserver.api"))}


def test_http_exceptions_are_domain_errors() -> None:
    """Middleware uses Starlette's exception, because it runs outside of our exception handlers."""
    names = {"fastapi.HTTPException", "fastapi.exceptions.HTTPException", "starlette.exceptions.HTTPException"}
    users = {name for name, path in modules().items() if names & set(imported(path))}
    assert users == {"api/errors.py", "api/middleware.py"}
    assert not {name for name, path in modules().items() if "fastapi.HTTPException" in set(imported(path))}


def test_modules_are_at_most_400_lines() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    assert {name: length for name, length in lengths.items() if length >= LONGEST} == {}


def test_only_settings_reads_the_environment() -> None:
    """All settings are described in one module."""
    readers = {
        name
        for name, path in modules().items()
        for node in nodes(path)
        if isinstance(node, ast.Attribute)
        and node.attr in ("environ", "getenv")
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    }
    assert {name for name in readers if not name.startswith("cli/")} == {"settings.py"}


@pytest.mark.parametrize("folder", ["services", "queries"])
def test_each_module_has_a_test_file_of_its_name(folder: str) -> None:
    names = {path.name for path in modules(folder).values()} - {"__init__.py"}
    assert {name for name in names if not (TESTS / folder / f"test_{name}").is_file()} == set()
