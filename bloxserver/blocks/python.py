"""`python`: runs a Python snippet on the message and answers with its value.

Snippets run in pydantic-monty, a separate interpreter without access to files, network, environment or other
processes. Each snippet runs in a new process. Only the synchronous pool is used, because Python often aborts at exit
after the use of the asynchronous one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from math import isfinite
from typing import Annotated, Any

from pydantic import AfterValidator, Field, JsonValue, RootModel
from pydantic_monty import Monty, MontyCrashedError, MontyRuntimeError, MontySession, MontySyntaxError, ResourceLimits

from bloxserver.blocks.base import Block, BlockConfig, BlockContext, BlockError
from bloxserver.blocks.python_names import external_names

MAX_CODE_BYTES = 20_000
MAX_TIMEOUT_SECONDS = 30
MAX_MEMORY_MB = 256
MAX_RECURSION = 500
MAX_ANSWER_BYTES = 1024 * 1024
MAX_ANSWER_DEPTH = 64
MAX_MESSAGE_CHARACTERS = 500
MEBIBYTE = 1024 * 1024
PROCESSES = 8
"""The maximum number of concurrent snippets. Others wait, and this time does not count towards their limit."""
GRACE_SECONDS = 1.0
"""The time after the time limit until a process that has not stopped is killed."""
CHECK_SECONDS = 5.0
CHECK_LIMITS: ResourceLimits = {"max_feed_duration_secs": 1, "max_memory": 64 * MEBIBYTE}
# With this line first, a snippet is parsed but not run.
STOP = "raise StopIteration\n"
# Output would leave the sandbox, which is slow, and would then be discarded.
PRELUDE = "def print(*values, **options): pass"

_threads = ThreadPoolExecutor(PROCESSES, thread_name_prefix="python-block")


def _checked_code(code: str) -> str:
    if len(code.encode()) > MAX_CODE_BYTES:
        raise ValueError(f"must not exceed {MAX_CODE_BYTES} bytes")
    try:
        problem = _problem(code)
    except OSError:
        return code  # no process can be started now; a run of the snippet reports the reason
    if problem is not None:
        raise ValueError(problem)
    return code


class PythonPayload(RootModel[JsonValue]):
    """Any JSON value, available to the snippet as `payload`."""


class PythonConfig(BlockConfig):
    code: Annotated[str, AfterValidator(_checked_code)] = Field(
        min_length=1,
        description="The snippet. The answer is the value of its last expression or of a return. Printed output is "
        "discarded.",
    )
    timeout_seconds: float = Field(5, ge=0.1, le=MAX_TIMEOUT_SECONDS, description="The time limit of the snippet.")
    memory_mb: int = Field(64, ge=1, le=MAX_MEMORY_MB, description="The memory limit of the snippet, in MiB.")


async def handle_python(payload: PythonPayload, config: PythonConfig, context: BlockContext) -> JsonValue:
    process = _Process()
    running = asyncio.get_running_loop().run_in_executor(_threads, _run, payload.root, config, process)
    try:
        return await running
    except asyncio.CancelledError:
        process.kill()
        raise


class _Process:
    """The process of a snippet, which another thread can kill."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._killed = False
        self._pid: int | None = None

    @contextmanager
    def running(self, pid: int | None) -> Iterator[None]:
        with self._lock:
            self._pid = pid
            if self._killed:
                raise BlockError("python_failed", "the snippet was cancelled")
        try:
            yield
        finally:
            with self._lock:
                self._pid = None

    def kill(self) -> None:
        with self._lock:
            self._killed = True
            if self._pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(self._pid, signal.SIGKILL)


def _run(payload: JsonValue, config: PythonConfig, process: _Process) -> JsonValue:
    """Run the snippet and return its answer. Blocks the thread; raises `BlockError`."""
    limits: ResourceLimits = {
        "max_feed_duration_secs": config.timeout_seconds,
        "max_memory": config.memory_mb * MEBIBYTE,
        "max_recursion_depth": MAX_RECURSION,
    }
    try:
        with _runners().checkout(limits=limits, os_policy={"sleep": "call_host"}) as session:
            session.feed_run(PRELUDE, print_callback=_discard_output)
            with process.running(session.worker_pid):
                output = session.feed_run(config.code, inputs={"payload": payload}, print_callback=_discard_output)
    except (MontySyntaxError, MontyRuntimeError) as error:
        raise BlockError("python_failed", _error_text(error), retryable=False) from None
    except MontyCrashedError as error:
        reason = "the snippet exceeded its time limit" if error.timed_out else "the process ended unexpectedly"
        raise BlockError("python_failed", reason, retryable=not error.timed_out) from None
    except OSError:
        raise BlockError("python_unavailable", "this server cannot start a process for the snippet now") from None
    return _AnswerReader().read(output)


@lru_cache(maxsize=256)
def _problem(code: str) -> str | None:
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
    return _pool(PROCESSES, MAX_TIMEOUT_SECONDS + 2 * GRACE_SECONDS, None)


@lru_cache
def _checkers() -> Monty:
    # A separate pool, so that a check never waits for running snippets.
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


def _invalid_answer(reason: str) -> BlockError:
    return BlockError("invalid_answer", f"the answer {reason}", retryable=False)


class _AnswerReader:
    """Converts an answer to JSON that every database accepts, and stops when it is too large.

    A small answer can represent a large one, for example a list that contains one large list a thousand times.
    """

    def __init__(self) -> None:
        self._bytes_left = MAX_ANSWER_BYTES

    def read(self, value: Any, depth: int = 0) -> JsonValue:
        """Return the value, with tuples as lists. Raises `BlockError`."""
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


block = Block(
    name="python",
    description="Runs a Python snippet on the message in a sandbox and answers with its value.",
    payload=PythonPayload,
    config=PythonConfig,
    handler=handle_python,
    example={
        "config": {
            "code": "paid = [order for order in payload['orders'] if order['paid']]\n"
            "{'count': len(paid), 'total': sum(order['price'] for order in paid)}"
        },
        "payload": {"orders": [{"paid": True, "price": 99.5}, {"paid": False, "price": 12}]},
    },
)
