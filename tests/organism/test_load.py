"""Definitions as executions load them."""

from __future__ import annotations

import asyncio
import json

import pytest

from bloxserver.blocks.registry import get_registry
from bloxserver.isolation import IsolationUnavailable
from bloxserver.models.default_organism import DEFAULT_ORGANISM
from bloxserver.organism.load import SMALL_CHARACTERS, parse_organism, run_isolated
from bloxserver.organism.parse import check
from bloxserver.organism.problems import OrganismError

PADDING = "#" * SMALL_CHARACTERS
"""A comment that makes a definition large enough to be read in another process."""
INVALID = "organism: {name: x}\nlisteners:\n  - {name: b, description: d, handler: unknown}\n"


@pytest.mark.parametrize("padding", ["", PADDING], ids=["small", "large"])
async def test_text_is_read_once(padding: str) -> None:
    text = DEFAULT_ORGANISM + padding
    organism, again = await asyncio.gather(parse_organism(text, 1), parse_organism(text, 2))
    assert organism.entry().name == "greeter"
    assert again is organism
    assert await parse_organism(text, 1) is organism


@pytest.mark.parametrize("padding", ["", PADDING], ids=["small", "large"])
async def test_invalid_text_raises_its_errors(padding: str) -> None:
    with pytest.raises(OrganismError) as error:
        await parse_organism(INVALID + padding, 1)
    assert [(problem.line, problem.code) for problem in error.value.problems] == [(3, "unknown_handler")]


@pytest.mark.parametrize("padding", ["", PADDING], ids=["small", "large"])
async def test_snippets_are_not_checked_again(padding: str) -> None:
    """The check starts an interpreter for each snippet. Their authors saw its result."""
    text = "organism: {name: x}\nlisteners:\n  - {name: a, description: d, handler: python, config: {code: 'x ='}}\n"
    assert check(text, get_registry())
    organism = await parse_organism(text + padding, 1)
    assert organism.listener("a").config.model_dump()["code"] == "x ="


async def test_definition_of_more_bytes_than_a_request_may_have_is_refused() -> None:
    with pytest.raises(OrganismError) as error:
        await parse_organism("#" * 2_000_000, 1)
    assert [problem.code for problem in error.value.problems] == ["yaml_limit"]


async def test_cancelled_caller_does_not_cancel_the_others() -> None:
    text = f"{DEFAULT_ORGANISM}{PADDING}#cancelled"
    first, second = (asyncio.ensure_future(parse_organism(text, 1)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).has("greeter")
    assert first.cancelled()


async def test_unexpected_error_in_the_process_is_a_problem_of_the_definition() -> None:
    with pytest.raises(OrganismError) as error:
        await run_isolated("organism.check_secrets", b"no JSON", 1)
    assert [problem.code for problem in error.value.problems] == ["too_costly"]


async def test_too_many_waiting_definitions_of_a_tenant_are_refused() -> None:
    requests = [asyncio.ensure_future(run_isolated("organism.check", b"", "many")) for _ in range(1_100)]
    results = await asyncio.gather(*requests, return_exceptions=True)
    assert any(isinstance(result, IsolationUnavailable) for result in results)
    assert any(isinstance(result, dict) and json.dumps(result) for result in results)
