"""The CPU time of an execution in other processes is limited."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest

from bloxserver.blocks.base import BlockError
from bloxserver.engine.run.isolated_tasks import MAX_REQUEST_BYTES, IsolatedTasks
from bloxserver.isolation import CpuTime, TaskLimits
from bloxserver.isolation.parts import join_parts
from bloxserver.plans import FREE, PLANS


async def test_cpu_time_is_added_up() -> None:
    tasks = IsolatedTasks(uuid4(), PLANS["free"])
    request = join_parts([json.dumps({"KEY": "canary"}).encode(), json.dumps(["canary", "x"] * 20_000).encode()])
    assert json.loads(await tasks.run("attempt.redact", request))[:2] == ["[secret KEY]", "x"]
    assert 0 < tasks.cpu_seconds < FREE.execution_cpu_seconds
    tasks = IsolatedTasks(uuid4(), FREE, CpuTime(FREE.execution_cpu_seconds))
    with pytest.raises(BlockError) as error:
        await tasks.run("attempt.redact", request)
    assert (error.value.code, error.value.retryable) == ("execution_cpu_seconds_limit_reached", False)
    assert "60" in error.value.message


async def test_request_that_is_too_large_is_refused() -> None:
    with pytest.raises(BlockError) as error:
        await IsolatedTasks(uuid4(), PLANS["free"]).run("attempt.input", bytes(MAX_REQUEST_BYTES + 1))
    assert error.value.code == "payload_too_large"


async def test_function_that_fails_unexpectedly_is_an_internal_error() -> None:
    with pytest.raises(BlockError) as error:
        await IsolatedTasks(uuid4(), PLANS["free"]).run("attempt.run", b"")
    assert (error.value.code, error.value.retryable) == ("internal_error", True)


async def test_cpu_time_of_a_task_that_was_ended_is_added_with_that_of_its_processes() -> None:
    tasks = IsolatedTasks(uuid4(), PLANS["free"])
    request = {"code": "while True:\n    pass", "values": {}, "timeout_seconds": 30, "memory_mb": 64}
    with pytest.raises(BlockError) as error:
        await tasks.run("python.run", json.dumps(request).encode(), TaskLimits(seconds=1))
    assert error.value.code == "time_limit_exceeded"
    assert tasks.cpu_seconds > 0
