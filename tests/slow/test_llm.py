"""When a process imports the libraries of the providers."""

from __future__ import annotations

import subprocess
import sys

from tests.llm.test_requests import both_providers
from tests.llm_server import (
    Api,
)

IN_A_PROCESS_OF_ITS_OWN = """
import asyncio, sys
import bloxserver.api.main, bloxserver.cli
from bloxserver.llm.gateway import LanguageModels
from bloxserver.settings import Settings

HEAVY = ("pydantic_ai", "openai", "anthropic", "httpx2")
assert not [name for name in HEAVY if name in sys.modules], "imported before it is needed"

async def main():
    models = LanguageModels(Settings(llm_base_url="http://127.0.0.1:9/v1", llm_model="m", llm_provider={provider!r}))
    loading, turns = asyncio.create_task(models.load(None)), 0
    while not loading.done():
        await asyncio.sleep(0.005)
        turns += 1
    await loading
    assert "pydantic_ai" in sys.modules
    before = set(sys.modules)
    import pydantic_ai.messages, pydantic_ai.tools
    assert set(sys.modules) == before, "not loaded"
    assert turns > 5, f"the loop stood still: {{turns}}"

asyncio.run(main())
"""


@both_providers
def test_the_libraries_are_imported_when_needed_and_the_loop_goes_on_meanwhile(provider: Api) -> None:
    program = IN_A_PROCESS_OF_ITS_OWN.format(provider=provider)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
