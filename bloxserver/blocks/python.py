"""`python`: runs a Python snippet on the message and answers with its value.

Snippets run in the process pool, see `python_snippets`.
"""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import AfterValidator, Field, JsonValue, RootModel

from bloxserver.blocks.base import Block, BlockConfig, BlockContext, BlockError
from bloxserver.blocks.checking import is_checking
from bloxserver.isolation.limits import MEBIBYTE, TaskLimits

MAX_CODE_BYTES = 20_000
MAX_TIMEOUT_SECONDS = 30
MAX_MEMORY_MB = 256
OVERHEAD_SECONDS = 5.0
"""Time to start the interpreter, and to read and write the message, in addition to the time limit of the snippet."""
OVERHEAD_BYTES = 256 * MEBIBYTE
"""Memory for the message and the interpreter, in addition to the memory limit of the snippet."""


def _checked_code(code: str) -> str:
    if len(code.encode()) > MAX_CODE_BYTES:
        raise ValueError(f"must not exceed {MAX_CODE_BYTES} bytes")
    if not is_checking():
        return code
    from bloxserver.blocks.python_snippets import find_problem

    try:
        problem = find_problem(code)
    except OSError:
        return code  # no process can be started now; a run of the snippet reports the reason
    if problem is not None:
        raise ValueError(problem)
    return code


class PythonPayload(RootModel[JsonValue]):
    """Any JSON value, available to the snippet as `payload`. The other names of expressions are available too."""


class PythonConfig(BlockConfig):
    code: Annotated[str, AfterValidator(_checked_code)] = Field(
        min_length=1,
        description="The snippet. The answer is the value of its last expression or of a return. Printed output is "
        "discarded.",
    )
    timeout_seconds: float = Field(5, ge=0.1, le=MAX_TIMEOUT_SECONDS, description="The time limit of the snippet.")
    memory_mb: int = Field(64, ge=1, le=MAX_MEMORY_MB, description="The memory limit of the snippet, in MiB.")


async def handle_python(payload: PythonPayload, config: PythonConfig, context: BlockContext) -> JsonValue:
    request = {
        "code": config.code,
        "values": _values(config.code, payload.root, context),
        "timeout_seconds": config.timeout_seconds,
        "memory_mb": config.memory_mb,
    }
    limits = TaskLimits(
        seconds=config.timeout_seconds + OVERHEAD_SECONDS,
        memory_bytes=config.memory_mb * MEBIBYTE + OVERHEAD_BYTES,
    )
    text = json.dumps(request, ensure_ascii=False)
    try:
        response = await context.isolated.run("python.run", text.encode(), limits)
    except BlockError as error:
        raise _own_error(error) from None
    result = json.loads(response)
    if "error" in result:
        raise BlockError(**result["error"])
    answer: JsonValue = result["answer"]
    return answer


def _values(code: str, payload: JsonValue, context: BlockContext) -> dict[str, JsonValue]:
    """Return the values of the names that the snippet can use: those that it mentions, because they may be large."""
    return {name: value for name, value in context.scope(payload).items() if name == "payload" or name in code}


def _own_error(error: BlockError) -> BlockError:
    """Return an error of the task as the error of the snippet."""
    match error.code:
        case "isolation_unavailable":
            return BlockError("python_unavailable", "this server cannot start a process for the snippet now")
        case "cpu_limit_exceeded" | "time_limit_exceeded":
            return BlockError("python_failed", "the snippet exceeded its time limit", retryable=False)
        case "memory_limit_exceeded":
            return BlockError("python_failed", "the snippet exceeded its memory limit", retryable=False)
        case "internal_error":
            return BlockError("python_failed", "the process ended unexpectedly")
        case _:
            return error


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
