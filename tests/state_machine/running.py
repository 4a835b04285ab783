"""Runs the state machine against an application with an engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from bloxserver.models.database import Database
from bloxserver.settings import Settings
from tests.api.own_database import own_database_client
from tests.clerk import clerk_authentication
from tests.engine.running_engine import running_engine
from tests.sqlite_threads import join_connection_threads
from tests.state_machine.machine import ApiMachine
from tests.state_machine.world import World


def run_state_machine(live_settings: Settings, *, examples: int, steps: int) -> None:
    """Run examples of up to `steps` steps. They are the same in each run."""
    profile = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
    with asyncio.Runner() as runner:
        opened = _world(live_settings)
        world = runner.run(opened.__aenter__())

        class Machine(ApiMachine):
            def __init__(self) -> None:
                super().__init__(world)

        try:
            run_state_machine_as_test(Machine, settings=profile)
        finally:
            runner.run(opened.__aexit__(None, None, None))


@asynccontextmanager
async def _world(live_settings: Settings) -> AsyncIterator[World]:
    database = Database(live_settings)
    try:
        async with (
            clerk_authentication() as clerk,
            running_engine(live_settings, database, stop_grace_seconds=0),
            own_database_client(database) as client,
        ):
            yield World(asyncio.get_running_loop(), client, database, clerk)
    finally:
        await database.dispose()
        await join_connection_threads()
