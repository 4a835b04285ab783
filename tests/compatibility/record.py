"""Record how the corpus behaves at a checkout of the promised commit, or a case that changes on purpose.

    git worktree add ../promised f12ef2d
    PYTHONPATH=. python -m tests.compatibility.record ../promised [TOPIC …]
    PYTHONPATH=. python -m tests.compatibility.record . --changed CASE "why it behaves differently"

The server runs with the code of the checkout and a new SQLite database. The corpus is that of this tree.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from tests.compatibility.behaviour import PATIENCE_SECONDS, observe
from tests.compatibility.cases import CHANGED, TOPICS, cases_of, read_json, recorded_path, write_json
from tests.compatibility.outside import KEY, SECRETS, outside_world
from tests.examples.served import free_port


@asynccontextmanager
async def server_of(checkout: Path) -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    """Run a server of a checkout. Yield a client, and the URL of the services that it can call."""
    async with outside_world() as outside:
        port = free_port()
        with tempfile.TemporaryDirectory() as directory:
            environment = {
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(checkout),
                "DATABASE_URL": f"sqlite+aiosqlite:///{directory}/recorded.db",
                "SSRF_ALLOW_CIDRS": "127.0.0.0/8",
                "API_KEY_ENCRYPTION_KEY": KEY,
                "LLM_PROVIDER": "openai",
                "LLM_BASE_URL": outside.url,
                "LLM_API_KEY": "any",
                "LLM_MODEL": "scripted",
                "ENGINE_POLL_SECONDS": "0.1",
            }
            command = [sys.executable, "-m", "bloxserver", "serve", "--host", "127.0.0.1", "--port", str(port)]
            process = subprocess.Popen(  # noqa: ASYNC220
                command, cwd=directory, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            try:
                async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                    await _until_ready(client)
                    for name, value in SECRETS.items():
                        (await client.put(f"/api/v1/secrets/{name}", json={"value": value})).raise_for_status()
                    yield client, outside.server.url("")
            finally:
                process.terminate()
                process.wait()


async def _until_ready(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                if (await client.get("/health/ready")).is_success:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)


async def record(checkout: Path, topics: list[str]) -> None:
    for topic in topics:
        async with server_of(checkout) as (client, outside):
            behaviours = {case.name: await observe(client, case, outside) for case in cases_of(topic)}
        write_json(recorded_path(topic), behaviours)


async def record_change(checkout: Path, name: str, reason: str) -> None:
    (case,) = [case for topic in TOPICS for case in cases_of(topic) if case.name == name]
    async with server_of(checkout) as (client, outside):
        behaviour = await observe(client, case, outside)
    write_json(CHANGED, read_json(CHANGED) | {name: {"reason": reason, "behaviour": behaviour}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=lambda path: Path(path).resolve())
    parser.add_argument("topics", nargs="*", default=list(TOPICS), metavar="TOPIC")
    parser.add_argument("--changed", nargs=2, metavar=("CASE", "REASON"))
    arguments = parser.parse_args()
    if arguments.changed:
        asyncio.run(record_change(arguments.checkout, *arguments.changed))
    else:
        asyncio.run(record(arguments.checkout, arguments.topics))


if __name__ == "__main__":
    main()
