"""Definitions that ran at the promised commit behave as they did. `record.py` has recorded their behaviour there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from bloxserver.models.database import Database
from bloxserver.organism.load import SMALL_CHARACTERS
from bloxserver.settings import Settings, get_settings
from tests.compatibility.behaviour import observe, text_of
from tests.compatibility.cases import CHANGED, COMMIT, TOPICS, Case, cases_of, read_json, recorded_path
from tests.compatibility.outside import KEY, SECRETS, outside_world
from tests.engine.running_engine import running_engine

LANGUAGE_CODES = {"invalid_template", "invalid_expression", "invalid_config", "unknown_handler"}
"""Errors that can end when the language grows: a placeholder, function or block that was unknown becomes known."""
CONCURRENT = 4
PADDING = f"# {'=' * SMALL_CHARACTERS}\n"


@pytest.fixture
async def outside(
    live_settings: Settings, live_database: Database, live_client: httpx.AsyncClient
) -> AsyncIterator[str]:
    """The URL of the services of the corpus. An engine runs that can reach them."""
    with pytest.MonkeyPatch.context() as environment:
        async with outside_world() as model:
            settings = {
                "api_key_encryption_key": SecretStr(KEY),
                "llm_provider": "openai",
                "llm_base_url": model.url,
                "llm_api_key": SecretStr("any"),
                "llm_model": "scripted",
            }
            for name, value in settings.items():
                environment.setenv(name, value.get_secret_value() if isinstance(value, SecretStr) else str(value))
            environment.setenv("SSRF_ALLOW_CIDRS", "127.0.0.0/8")
            get_settings.cache_clear()
            for name, value in SECRETS.items():
                stored = await live_client.put(f"/api/v1/secrets/{name}", json={"value": value})
                assert stored.status_code == 200, stored.text
            async with running_engine(live_settings, live_database, **settings):
                yield model.server.url("")
    get_settings.cache_clear()


@pytest.mark.parametrize("topic", TOPICS)
async def test_definitions_behave_as_at_the_promised_commit(
    topic: str, backend: str, live_client: httpx.AsyncClient, outside: str
) -> None:
    # Definitions of more than 512 characters are read in another process. That path does not depend on the database.
    padding = "" if backend == "sqlite" else PADDING
    promised, changed = read_json(recorded_path(topic)), read_json(CHANGED)
    cases, limit = cases_of(topic), asyncio.Semaphore(CONCURRENT)

    async def behaviour_of(case: Case) -> dict[str, Any]:
        async with limit:
            return await observe(live_client, case, outside, padding)

    found = {}
    for case, behaviour in zip(cases, await asyncio.gather(*map(behaviour_of, cases)), strict=True):
        if case.name in changed:
            differs = text_of(behaviour) != text_of(changed[case.name]["behaviour"])
            problem = ["differs from the behaviour in changed.json"] if differs else []
        else:
            problem = differences(promised[case.name], behaviour)
        if problem:
            found[case.name] = problem
    assert not found, (
        f"{found}\nThese definitions behave differently than at {COMMIT}. For an intended change: "
        '`python -m tests.compatibility.record . --changed CASE "REASON"`'
    )


def differences(promised: dict[str, Any], behaviour: dict[str, Any]) -> list[str]:
    """Return how a behaviour breaks the promise.

    A definition that ran must still run with the same results, and has the same warnings, or more. One that had errors
    did not run: it can have become valid, unless its errors have nothing to do with the language of expressions.
    """
    now = set(behaviour["problems"])
    lost = [problem for problem in promised["problems"] if problem not in now and not _can_end(problem)]
    found = [f"{problem} is not reported" for problem in lost]
    if promised["flow"] == "running":
        errors = [problem for problem in behaviour["problems"] if " error " in problem]
        found += [f"{problem} is new" for problem in errors]
        if behaviour["flow"] != "running":
            return [*found, "the flow does not start"]
        for number, (before, run) in enumerate(zip(promised["runs"], behaviour["runs"], strict=True), 1):
            found += [
                f"run {number}, {name}: {text_of(run[name])} instead of {text_of(before[name])}"
                for name in before
                if text_of(run[name]) != text_of(before[name])
            ]
    return found


def _can_end(problem: str) -> bool:
    _, severity, code = problem.split()
    return severity == "error" and code in LANGUAGE_CODES


def test_every_case_is_recorded() -> None:
    names = [case.name for topic in TOPICS for case in cases_of(topic)]
    recorded = [name for topic in TOPICS for name in read_json(recorded_path(topic))]
    assert names == recorded
    assert len(names) == len(set(names))
    assert read_json(CHANGED).keys() <= set(names)
