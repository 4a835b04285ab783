"""`python`: answers with what a snippet of Python makes of the message.

Snippets run in pydantic-monty, an interpreter of its own that has no way to files, network, environment or other
processes, each in a fresh process that ends with it. Only the synchronous pool is used: Python often aborts at exit
after the asynchronous one.
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
from bloxserver.blocks.python_names import outer_names

MAX_CODE_BYTES = 20_000
MAX_TIMEOUT_SECONDS = 30
MAX_MEMORY_MB = 256
MAX_RECURSION = 500
MAX_ANSWER_BYTES = 1024 * 1024
MAX_ANSWER_DEPTH = 64
MAX_MESSAGE_CHARACTERS = 500
MEBIBYTE = 1024 * 1024
PROCESSES = 8
"""Snippets that run at once. Others wait for their turn, and their time does not count meanwhile."""
GRACE_SECONDS = 1.0
"""After which a process that does not notice that its time is over is killed."""
CHECK_SECONDS = 5.0
CHECK_LIMITS: ResourceLimits = {"max_feed_duration_secs": 1, "max_memory": 64 * MEBIBYTE}
# A snippet in which this comes first is read to its end, but nothing of it is run.
STOP = "raise StopIteration\n"
# What is printed would be carried out of the sandbox at great cost, only to be thrown away.
PRELUDE = "def print(*values, **options): pass"

_threads = ThreadPoolExecutor(PROCESSES, thread_name_prefix="python-block")


def _checked_code(code: str) -> str:
    if len(code.encode()) > MAX_CODE_BYTES:
        raise ValueError(f"a snippet may have {MAX_CODE_BYTES} bytes")
    try:
        problem = _problem(code)
    except OSError:
        return code  # this server can start no process now; a run of the snippet fails with the reason
    if problem is not None:
        raise ValueError(problem)
    return code


class PythonPayload(RootModel[JsonValue]):
    """Any JSON value; the snippet finds it as `payload`."""


class PythonConfig(BlockConfig):
    code: Annotated[str, AfterValidator(_checked_code)] = Field(
        min_length=1,
        description="The snippet. The answer is the value of its last expression, or of a return; what it prints is "
        "dropped.",
    )
    timeout_seconds: float = Field(5, ge=0.1, le=MAX_TIMEOUT_SECONDS, description="How long it may run.")
    memory_mb: int = Field(64, ge=1, le=MAX_MEMORY_MB, description="How much memory it may use, in MiB.")


async def handle_python(payload: PythonPayload, config: PythonConfig, context: BlockContext) -> JsonValue:
    process = _Process()
    running = asyncio.get_running_loop().run_in_executor(_threads, _run, payload.root, config, process)
    try:
        return await running
    except asyncio.CancelledError:
        process.kill()
        raise


class _Process:
    """The process that a snippet runs in, so that another thread can put an end to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._killed = False
        self._pid: int | None = None

    @contextmanager
    def running(self, pid: int | None) -> Iterator[None]:
        with self._lock:
            self._pid = pid
            if self._killed:
                raise BlockError("python_failed", "the snippet was not wanted any more")
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
    """The snippet's answer. Takes as long as the snippet; raises `BlockError`."""
    limits: ResourceLimits = {
        "max_feed_duration_secs": config.timeout_seconds,
        "max_memory": config.memory_mb * MEBIBYTE,
        "max_recursion_depth": MAX_RECURSION,
    }
    try:
        with _runners().checkout(limits=limits, os_policy={"sleep": "call_host"}) as session:
            session.feed_run(PRELUDE, print_callback=_drop)
            with process.running(session.worker_pid):
                output = session.feed_run(config.code, inputs={"payload": payload}, print_callback=_drop)
    except (MontySyntaxError, MontyRuntimeError) as error:
        raise BlockError("python_failed", _told(error), retryable=False) from None
    except MontyCrashedError as error:
        told = "it took too long" if error.timed_out else "its process ended unexpectedly"
        raise BlockError("python_failed", told, retryable=not error.timed_out) from None
    except OSError:
        raise BlockError("python_unavailable", "this server cannot start a process for snippets now") from None
    return _Answer().read(output)


@lru_cache(maxsize=256)
def _problem(code: str) -> str | None:
    """What keeps a snippet from running at all. Raises `OSError` where no process can be started to find out."""
    with _checkers().checkout(limits=CHECK_LIMITS) as session:
        try:
            syntax = _failure(session, STOP + code)
            if syntax is None or syntax.display("type-msg") != "StopIteration":
                return None if syntax is None else _told(syntax, lines_before=1)
            return "; ".join(_missing(session, code))[:MAX_MESSAGE_CHARACTERS] or None
        except MontyCrashedError:
            return "it cannot be read"


def _missing(session: MontySession, code: str) -> list[str]:
    """What a snippet names and the interpreter does not have."""
    missing: list[tuple[int, str]] = []
    for name in outer_names(code):
        if not name.statement:
            missing.append((name.line, name.reason))
        elif (failure := _failure(session, name.statement)) is not None:
            missing.append((name.line, _plain(failure.display("type-msg"))))
    return [f"line {line}: {reason}" for line, reason in sorted(missing)]


def _failure(session: MontySession, code: str) -> MontySyntaxError | MontyRuntimeError | None:
    """The error that some code ends with. Raises `MontyCrashedError`."""
    try:
        session.feed_run(code, print_callback=_drop)
    except (MontySyntaxError, MontyRuntimeError) as error:
        return error
    return None


@lru_cache
def _runners() -> Monty:
    return _pool(PROCESSES, MAX_TIMEOUT_SECONDS + 2 * GRACE_SECONDS, None)


@lru_cache
def _checkers() -> Monty:
    # Apart from the others, so that a check never waits for snippets that run.
    return _pool(2, CHECK_SECONDS, CHECK_SECONDS)


def _pool(processes: int, turn_seconds: float, wait_seconds: float | None) -> Monty:
    """Starts a process for each snippet, and has none in between: there is nothing to close."""
    pool = Monty(
        min_processes=0,
        max_processes=processes,
        checkout_timeout=wait_seconds,
        request_timeout=turn_seconds,
        max_checkouts_per_worker=1,
        feed_duration_limit_grace=GRACE_SECONDS,
    )
    return pool.__enter__()


def _drop(stream: str, text: str) -> None:
    """Without it, what is printed would appear among our logs."""


def _told(error: MontySyntaxError | MontyRuntimeError, lines_before: int = 0) -> str:
    """What is wrong with a snippet that has so many lines of ours before it."""
    frames = error.traceback()
    place = f"line {max(1, frames[-1].line - lines_before)}: " if frames else ""
    return _plain(f"{place}{error.display('type-msg')}"[:MAX_MESSAGE_CHARACTERS])


def _plain(text: str) -> str:
    """Without what no database takes."""
    return text.encode(errors="replace").decode().replace("\0", "\ufffd")


def _unusable(reason: str) -> BlockError:
    return BlockError("invalid_answer", f"the answer {reason}", retryable=False)


class _Answer:
    """Reads an answer as JSON that every database takes, and stops where it is too large.

    Few objects can stand for many: a list in which one large list stands a thousand times.
    """

    def __init__(self) -> None:
        self._bytes_left = MAX_ANSWER_BYTES

    def read(self, value: Any, depth: int = 0) -> JsonValue:
        """The value, with tuples as lists. Raises `BlockError`."""
        if isinstance(value, str):
            return self._text(value)
        if value is None or isinstance(value, bool | int | float):
            return self._number(value)
        self._spend(3)
        if depth == MAX_ANSWER_DEPTH:
            raise _unusable(f"is nested deeper than {MAX_ANSWER_DEPTH}")
        if isinstance(value, list | tuple):
            return [self.read(child, depth + 1) for child in value]
        if isinstance(value, dict):
            return {self._key(key): self.read(child, depth + 1) for key, child in value.items()}
        raise _unusable(f"holds a value of type {type(value).__name__}, which is no JSON")

    def _key(self, key: Any) -> str:
        if not isinstance(key, str):
            raise _unusable("holds a dict with a key that is no text")
        return self._text(key)

    def _number(self, value: int | float | None) -> JsonValue:
        if isinstance(value, float) and not isfinite(value):
            raise _unusable(f"holds the number {value}, which is no JSON")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise _unusable("holds a number of more than 64 bits")
        self._spend(len(repr(value)) + 1)
        return value

    def _text(self, text: str) -> str:
        try:
            self._spend(len(text.encode()) + 3)
        except UnicodeEncodeError:
            text = "\0"
        if "\0" in text:
            raise _unusable("holds a text with a NUL or half a surrogate pair")
        return text

    def _spend(self, count: int) -> None:
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise _unusable(f"is larger than {MAX_ANSWER_BYTES} bytes")


block = Block(
    name="python",
    description="Answers with what a snippet of Python makes of its message; the snippet reaches nothing else.",
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
