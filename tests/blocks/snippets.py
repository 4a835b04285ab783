"""Run snippets of the block `python`."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import JsonValue

from bloxserver.blocks.base import BlockContext, BlockError
from bloxserver.blocks.python import (
    PythonConfig,
    PythonPayload,
    handle_python,
)

LOOP = "while True:\n    pass"


async def run(context: BlockContext, code: str, payload: JsonValue = None, **config: Any) -> JsonValue:
    """Run a snippet without validating it first, and return its answer."""
    given = PythonConfig.model_construct(code=code, **config)
    return await handle_python(PythonPayload.model_construct(root=payload), given, context)


async def failure(context: BlockContext, code: str, payload: JsonValue = None, **config: Any) -> BlockError:
    with pytest.raises(BlockError) as caught:
        await run(context, code, payload, **config)
    return caught.value
