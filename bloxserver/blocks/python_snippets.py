"""Runs and checks Python snippets with pydantic-monty. Runs in a process of its own, except for checks.

pydantic-monty is a separate interpreter without access to files, network, environment or other processes. Each snippet
runs in a new process of it. Only the synchronous pool is used, because Python often aborts at exit after the use of the
asynchronous one.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from functools import lru_cache
from math import isfinite
from typing import Any

from pydantic import JsonValue
from pydantic_monty import Monty, MontyCrashedError, MontyRuntimeError, MontySession, MontySyntaxError, ResourceLimits

from bloxserver.blocks.python_names import external_names

MAX_TIMEOUT_SECONDS = 30
MAX_RECURSION = 500
MAX_ANSWER_BYTES = 1024 * 1024
MAX_ANSWER_DEPTH = 64
MAX_MESSAGE_CHARACTERS = 500
MEBIBYTE = 1024 * 1024
GRACE_SECONDS = 1.0
"""The time after the time limit until a process that has not stopped is killed."""
CHECK_SECONDS = 5.0
CHECK_LIMITS: ResourceLimits = {"max_feed_duration_secs": 1, "max_memory": 64 * MEBIBYTE}
# With this line first, a snippet is parsed but not run.
STOP = "raise StopIteration\n"
# Output would leave the sandbox, which is slow, and would then be discarded.
PRELUDE = "def print(*values, **options): pass"


class SnippetError(Exception):
    """The snippet has no answer, with the code, the text and `retryable` of a `BlockError`."""

    def __init__(self, code: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable


def run_snippet(request: bytes) -> bytes:
    """Run a snippet.

    The request has `code`, `values` by name, `timeout_seconds` and `memory_mb`. The response has `answer`, or `error`
    with the arguments of a `SnippetError`.
    """
    given = json.loads(request)
    try:
        response = {"answer": _run(given["code"], given["values"], given["timeout_seconds"], given["memory_mb"])}
    except SnippetError as error:
        response = {"error": {"code": error.code, "message": error.message, "retryable": error.retryable}}
    return json.dumps(response, ensure_ascii=False).encode()


def _run(code: str, values: dict[str, JsonValue], timeout_seconds: float, memory_mb: int) -> JsonValue:
    limits: ResourceLimits = {
        "max_feed_duration_secs": timeout_seconds,
        "max_memory": memory_mb * MEBIBYTE,
        "max_recursion_depth": MAX_RECURSION,
    }
    process: int | None = None
    try:
        with _runners().checkout(limits=limits, os_policy={"sleep": "call_host"}) as session:
            process = session.worker_pid
            session.feed_run(PRELUDE, print_callback=_discard_output)
            output = session.feed_run(code, inputs=values, print_callback=_discard_output)
    except (MontySyntaxError, MontyRuntimeError) as error:
        raise SnippetError("python_failed", _error_text(error)) from None
    except MontyCrashedError as error:
        reason = "the snippet exceeded its time limit" if error.timed_out else "the process ended unexpectedly"
        raise SnippetError("python_failed", reason, retryable=not error.timed_out) from None
    except OSError:
        message = "this server cannot start a process for the snippet now"
        raise SnippetError("python_unavailable", message, retryable=True) from None
    finally:
        _reap(process)
    return _AnswerReader().read(output)


@lru_cache(maxsize=256)
def find_problem(code: str) -> str | None:
    """Return the reason why a snippet can never run, or None. Raises `OSError` if no process can be started."""
    with _checkers().checkout(limits=CHECK_LIMITS) as session:
        try:
            syntax = _failure(session, STOP + code)
            if syntax is None or syntax.display("type-msg") != "StopIteration":
                return None if syntax is None else _error_text(syntax, lines_before=1)
            return "; ".join(_missing_names(session, code))[:MAX_MESSAGE_CHARACTERS] or None
        except MontyCrashedError:
            return "the snippet cannot be parsed"


def _missing_names(session: MontySession, code: str) -> list[str]:
    """Return the names in a snippet that the interpreter does not have."""
    missing: list[tuple[int, str]] = []
    for name in external_names(code):
        if not name.statement:
            missing.append((name.line, name.reason))
        elif (failure := _failure(session, name.statement)) is not None:
            missing.append((name.line, _plain(failure.display("type-msg"))))
    return [f"line {line}: {reason}" for line, reason in sorted(missing)]


def _failure(session: MontySession, code: str) -> MontySyntaxError | MontyRuntimeError | None:
    """Run code and return its error, if any. Raises `MontyCrashedError`."""
    try:
        session.feed_run(code, print_callback=_discard_output)
    except (MontySyntaxError, MontyRuntimeError) as error:
        return error
    return None


@lru_cache
def _runners() -> Monty:
    return _pool(1, MAX_TIMEOUT_SECONDS + 2 * GRACE_SECONDS, None)


@lru_cache
def _checkers() -> Monty:
    return _pool(2, CHECK_SECONDS, CHECK_SECONDS)


def _pool(processes: int, turn_seconds: float, wait_seconds: float | None) -> Monty:
    """Return a pool that starts a process per snippet. It has no idle processes, so that it need not be closed."""
    pool = Monty(
        min_processes=0,
        max_processes=processes,
        checkout_timeout=wait_seconds,
        request_timeout=turn_seconds,
        max_checkouts_per_worker=1,
        feed_duration_limit_grace=GRACE_SECONDS,
    )
    return pool.__enter__()


def _reap(process: int | None) -> None:
    """Wait for the end of the process: only then does its CPU time count as that of a child.

    The pool would reap it too, but sometimes only when its next process ends. It ignores processes that are gone.
    """
    if process is not None:
        with suppress(ChildProcessError):
            os.waitpid(process, 0)


def _discard_output(stream: str, text: str) -> None:
    """Discard output, which would otherwise be written to the server's log."""


def _error_text(error: MontySyntaxError | MontyRuntimeError, lines_before: int = 0) -> str:
    """Return the line and the text of an error, for a snippet after `lines_before` other lines."""
    frames = error.traceback()
    place = f"line {max(1, frames[-1].line - lines_before)}: " if frames else ""
    return _plain(f"{place}{error.display('type-msg')}"[:MAX_MESSAGE_CHARACTERS])


def _plain(text: str) -> str:
    """Replace the characters that databases do not accept."""
    return text.encode(errors="replace").decode().replace("\0", "\ufffd")


def _invalid_answer(reason: str) -> SnippetError:
    return SnippetError("invalid_answer", f"the answer {reason}")


class _AnswerReader:
    """Converts an answer to JSON that every database accepts, and stops when it is too large.

    A small answer can represent a large one, for example a list that contains one large list a thousand times.
    """

    def __init__(self) -> None:
        self._bytes_left = MAX_ANSWER_BYTES

    def read(self, value: Any, depth: int = 0) -> JsonValue:
        """Return the value, with tuples as lists. Raises `SnippetError`."""
        if isinstance(value, str):
            return self._text(value)
        if value is None or isinstance(value, bool | int | float):
            return self._number(value)
        self._consume(3)
        if depth == MAX_ANSWER_DEPTH:
            raise _invalid_answer(f"is nested more than {MAX_ANSWER_DEPTH} levels deep")
        if isinstance(value, list | tuple):
            return [self.read(child, depth + 1) for child in value]
        if isinstance(value, dict):
            return {self._key(key): self.read(child, depth + 1) for key, child in value.items()}
        raise _invalid_answer(f"contains a value of type {type(value).__name__}, which is not JSON")

    def _key(self, key: Any) -> str:
        if not isinstance(key, str):
            raise _invalid_answer("contains a dict with a key that is not a string")
        return self._text(key)

    def _number(self, value: int | float | None) -> JsonValue:
        if isinstance(value, float) and not isfinite(value):
            raise _invalid_answer(f"contains the number {value}, which is not JSON")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise _invalid_answer("contains a number of more than 64 bits")
        self._consume(len(repr(value)) + 1)
        return value

    def _text(self, text: str) -> str:
        try:
            self._consume(len(text.encode()) + 3)
        except UnicodeEncodeError:
            text = "\0"
        if "\0" in text:
            raise _invalid_answer("contains a text with a NUL character or half of a surrogate pair")
        return text

    def _consume(self, count: int) -> None:
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise _invalid_answer(f"is larger than {MAX_ANSWER_BYTES} bytes")
