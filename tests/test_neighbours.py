"""The calculations of the benchmark `neighbours`."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from benchmarks.neighbours.cases import CASES
from benchmarks.neighbours.connections import Answer, Client
from benchmarks.neighbours.measurement import Outcome
from benchmarks.neighbours.memory import PeakMemory, descendants
from benchmarks.neighbours.table import faults, format_rows, missed_targets
from benchmarks.neighbours.victim import Samples

ON_LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is available only on Linux")


@asynccontextmanager
async def answering(response: bytes) -> AsyncIterator[Client]:
    """A server that answers each connection with these bytes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")


class TestClient:
    @pytest.mark.parametrize(
        "response",
        [
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\nhello",
        ],
    )
    async def test_reads_the_body(self, response: bytes) -> None:
        async with answering(response) as client:
            assert await client.request("GET", "/") == Answer(200, b"hello")
            assert await client.request("GET", "/", discard=True) in (Answer(200, b""), Answer(200, b"hello"))

    @pytest.mark.parametrize("response", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell"])
    async def test_incomplete_response_is_a_connection_error(self, response: bytes) -> None:
        async with answering(response) as client:
            with pytest.raises(ConnectionError):
                await client.request("GET", "/")

    def test_outcome_has_the_code_of_the_error(self) -> None:
        assert Answer(200, b"").outcome == "200"
        assert Answer(429, b'{"code": "rate_limited"}').outcome == "429 rate_limited"
        assert Answer(500, b"<html>").outcome == "500 without a code"


@ON_LINUX
def test_peak_memory_includes_ended_children() -> None:
    code = "x = bytearray(50_000_000); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    memory = PeakMemory([os.getpid()])
    assert child.pid in descendants(os.getpid())
    while memory.by_process.get(child.pid, 0) < 50_000_000:
        memory.sample()
    child.communicate(b"\n")
    memory.sample()
    assert memory.by_process[child.pid] >= 50_000_000
    assert memory.highest >= 50_000_000


class TestTargets:
    def outcome(self, *, probe: float = 5, memory: int = 100_000_000, told: str = "200") -> Outcome:
        samples = Samples(lists=[20.0] * 99 + [300.0], runs=[30.0] * 100, probes=[probe])
        return Outcome(CASES["control"], "SQLite", samples, memory, 0, "9 ms", Counter({told: 3}))

    def test_one_slow_request_of_100_is_allowed(self) -> None:
        assert missed_targets(self.outcome()) == []

    def test_each_slow_probe_counts(self) -> None:
        assert missed_targets(self.outcome(probe=101)) == ["liveness"]

    @pytest.mark.parametrize("told", ["500 internal_error", "502 without a code"])
    def test_errors_of_the_server_are_faults(self, told: str) -> None:
        assert "5xx" in faults(self.outcome(told=told))

    def test_memory_and_failures_are_faults(self) -> None:
        outcome = self.outcome(memory=1_100_000_000)
        outcome.samples.failures.append("list: TimeoutError")
        assert faults(outcome) == ["RSS", "failures"]

    def test_table_shows_what_the_attacker_was_told(self) -> None:
        row = format_rows([self.outcome(told="429 rate_limited")]).splitlines()[-1]
        assert [cell.strip() for cell in row.split("|")][4:8] == ["20/20/20/300", "30/30/30/30", "5", "100"]
        assert "3 times 429 rate_limited" in row
