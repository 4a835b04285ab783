"""The load generator and the calculations of the benchmark of the API."""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.api import results, tables, targets
from benchmarks.api.agreement import find_difference
from benchmarks.api.cores import pin
from benchmarks.api.generator import Generator, Load, Measured
from benchmarks.api.memory_growth import MemoryGrowth, read_memory
from benchmarks.api.plot import draw
from benchmarks.api.requests import BARE, COUNTING, KEPT, OURS
from benchmarks.api.samples import Row, Sample, summarize
from benchmarks.api.setup import describe_setup

SVG = "{http://www.w3.org/2000/svg}"
GET = "GET /one HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
REQUESTS = 40


@asynccontextmanager
async def answering(*responses: bytes) -> AsyncIterator[tuple[int, list[str], set[str]]]:
    """A server that answers with these parts of a response. Yields its port, the paths and the client addresses."""
    paths: list[str] = []
    addresses: set[str] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        addresses.add(writer.get_extra_info("peername")[0])
        while head := await reader.readuntil(b"\r\n\r\n"):
            paths.append(head.split()[1].decode())
            for part in responses:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)

    async def until_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except asyncio.IncompleteReadError:
            writer.close()

    async with await asyncio.start_server(until_end, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], paths, addresses


async def generate(port: int, *requests: str, connections: int = 2, addresses: int = 1) -> Measured:
    load = Load(port, connections, 60, list(requests), addresses, maximum=REQUESTS)
    return await Generator(load, warm_up_seconds=0).run()


class TestGenerator:
    @pytest.mark.parametrize("parts", [[OK], [OK[:9], OK[9:]], [OK[:-5], OK[-5:]]])
    async def test_counts_complete_responses(self, parts: list[bytes]) -> None:
        async with answering(*parts) as (port, paths, _):
            measured = await generate(port, GET)
        assert (measured.requests, measured.answered, measured.unanswered) == (REQUESTS, REQUESTS, 0)
        assert len(paths) == REQUESTS
        assert measured.statuses == {"200": REQUESTS}
        assert 0 < measured.p50_ms <= measured.p99_ms
        assert measured.rate == pytest.approx(REQUESTS / measured.seconds)

    async def test_other_statuses_are_failures(self) -> None:
        async with answering(BUSY) as (port, _, _):
            measured = await generate(port, GET)
        assert (measured.requests, measured.failures) == (0, {"503": REQUESTS})
        assert measured.body.startswith("HTTP/1.1 503")

    async def test_closed_connection_is_unanswered(self) -> None:
        async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK[:-1])
            writer.close()

        async with await asyncio.start_server(close, "127.0.0.1", 0) as server:
            measured = await generate(server.sockets[0].getsockname()[1], GET, connections=3)
        assert (measured.answered, measured.unanswered) == (0, 3)

    async def test_each_connection_sends_all_requests_in_turn(self) -> None:
        async with answering(OK) as (port, paths, addresses):
            await generate(port, GET, GET.replace("one", "two"), addresses=2)
        assert paths.count("/one") == paths.count("/two") == REQUESTS / 2
        assert addresses == {"127.0.0.1", "127.0.0.2"}

    async def test_each_connection_is_measured_if_the_server_is_slow(self) -> None:
        async with answering(OK) as (port, _, _):
            measured = await Generator(Load(port, 3, 0, [GET]), warm_up_seconds=0.0).run()
        assert measured.requests == measured.answered == 3
        assert measured.p50_ms > 0


class TestAgreement:
    @pytest.mark.parametrize(
        ("bare", "ours"),
        [
            ({"total": 1}, {"total": 1, "nextCursor": None}),
            ({"at": "2026-01-01T00:00:00Z"}, {"at": "2026-01-01T00:00:00.000000+00:00"}),
            ({"mean": 1.00001}, {"mean": 1}),
            ({"executionId": "a"}, {"executionId": "b"}),
        ],
    )
    def test_same_answers(self, bare: object, ours: object) -> None:
        assert find_difference(bare, ours) is None

    @pytest.mark.parametrize(
        ("bare", "ours", "difference"),
        [
            ({"total": 1}, {}, "total is missing"),
            ({"total": 1}, {"total": 2}, "total: 1 and 2"),
            ({"items": [{"id": "a"}]}, {"items": [{"id": "b"}]}, "items: id: 'a' and 'b'"),
            ({"items": [1]}, {"items": [1, 2]}, "items: [1] and [1, 2]"),
            ({"at": "2026-01-01T00:00:00Z"}, {"at": "2026-01-01T00:00:01Z"}, "at: "),
        ],
    )
    def test_different_answers(self, bare: object, ours: object, difference: str) -> None:
        assert (find_difference(bare, ours) or "").startswith(difference)


def sample(variant: str, number: int, rate: float, endpoint: str = "list", history: int = 1_000) -> Sample:
    return Sample(history, endpoint, 16, variant, number, rate, 1.5, 3, 0.5, 0.2, 100, 0)


def row(endpoint: str, history: int, ours: float, **bare: float) -> Row:
    rates = {OURS: ours} | bare
    return summarize(sample(variant, 0, rate, endpoint, history) for variant, rate in rates.items())[0]


def test_ratio_is_the_median_of_the_ratios_within_the_rounds() -> None:
    ours, bare = [100.0, 300.0, 200.0], [1000.0, 1000.0, 4000.0]
    samples = [sample(OURS, number, rate) for number, rate in enumerate(ours)]
    samples += [sample(COUNTING, number, rate) for number, rate in enumerate(bare)]
    (summarized,) = summarize(samples)
    assert summarized.ours.rate == 200
    assert summarized.ours.ratio is None
    assert summarized.variants[COUNTING].ratio == pytest.approx(0.1)


ROWS = [
    row("list", 1_000, 500, counting=1000, kept=2000),
    row("list", 100_000, 450, counting=100, kept=2000),
    row("list", 1_000_000, 300, counting=10, kept=2000),
    row("webhook", 1_000, 600, bare=1000),
]
MEMORY = MemoryGrowth(100_000, 100 * 2**20, 90 * 2**20, 101 * 2**20, 94 * 2**20)


def test_targets_are_compared_with_the_figures() -> None:
    checked = [(target, figure) for target, figure in targets.check(ROWS, MEMORY)]
    figures = {target.meaning.partition(":")[0]: (figure, target) for target, figure in checked if figure is not None}
    assert figures["webhook"][0] == pytest.approx(0.6)
    assert figures["list at 1,000 executions"][0] == pytest.approx(0.5)
    assert figures["list at 100,000 executions"][0] == pytest.approx(4.5)
    assert figures["list"][0] == pytest.approx(500 / 300)
    assert figures["memory (RSS) that 100,000 requests add"][0] == pytest.approx(1)
    missed = {name for name, (figure, target) in figures.items() if figure and not target.is_reached(figure)}
    assert missed == {"list"}


def test_figures_that_were_not_measured_are_left_out() -> None:
    assert {figure for _, figure in targets.check([], None)} == {None}
    assert {figure for _, figure in targets.check([], replace(MEMORY, requests=50))} == {None}


def test_table_shows_failed_requests() -> None:
    overloaded = Sample(1_000, "stats", 16, OURS, 0, 0, 0, 0, 0, None, 3, 3)
    (summarized,) = summarize([overloaded, sample(COUNTING, 0, 10, "stats")])
    assert "| 0 (3 failed) |" in tables.format_rows([summarized])


class TestPlot:
    def test_has_a_curve_for_each_variant(self) -> None:
        root = ET.fromstring(draw({"PostgreSQL": ROWS}))  # noqa: S314
        curves = root.findall(f"{SVG}polyline")
        assert len(curves) == 5  # three of lists, two of webhooks
        assert [len(curve.attrib["points"].split()) for curve in curves] == [1, 1, 3, 3, 3]

    def test_higher_rates_are_above_lower_ones(self) -> None:
        root = ET.fromstring(draw({"SQLite": ROWS}))  # noqa: S314
        counting = root.findall(f"{SVG}polyline")[2].attrib["points"].split()
        heights = [float(point.split(",")[1]) for point in counting]
        assert heights == sorted(heights)
        assert len(set(heights)) == 3

    def test_is_within_its_view_box(self) -> None:
        root = ET.fromstring(draw({"PostgreSQL": ROWS, "SQLite": []}))  # noqa: S314
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        for element in root.iter(f"{SVG}text"):
            assert 0 <= float(element.attrib["x"]) <= width
            assert 0 <= float(element.attrib["y"]) <= height


class TestFiles:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        (tmp_path / "docs").mkdir()
        for name in ("README.md", "docs/performance.md"):
            (tmp_path / name).write_text(f"before\n\n{results.BEGIN}\nold\n{results.END}\n\nafter\n")
        return tmp_path

    def results(self, *, memory: MemoryGrowth | None = MEMORY) -> results.Results:
        return results.Results(describe_setup({"RATE_LIMITS": "true"}, 3, 2), ROWS, memory, (ROWS[0],))

    def test_stored_results_are_loaded_again(self, root: Path) -> None:
        stored = {"PostgreSQL": self.results()}  # once: it has the load of the machine
        results.store(root, stored)
        assert results.load(root) == stored

    def test_results_of_another_database_are_kept(self, root: Path) -> None:
        results.store(root, {"SQLite": self.results()})
        results.store(root, {"PostgreSQL": self.results(memory=None)})
        assert list(results.load(root)) == ["PostgreSQL", "SQLite"]
        assert "## SQLite" in (root / "benchmarks/results/api.md").read_text()

    def test_tables_replace_the_text_between_the_markers(self, root: Path) -> None:
        for _ in range(2):
            results.store(root, {"PostgreSQL": self.results()})
        for name, cell in (("README.md", "450/s, ratio 4.50, p50 1.5 ms"), ("docs/performance.md", "1.67 (missed)")):
            text = (root / name).read_text()
            assert text.startswith(f"before\n\n{results.BEGIN}\n\n")
            assert text.endswith(f"\n\n{results.END}\n\nafter\n")
            assert "old" not in text
            assert cell in text

    def test_files_name_no_directory(self, root: Path) -> None:
        results.store(root, {"PostgreSQL": self.results()})
        for file in (root / "benchmarks/results").iterdir():
            text = file.read_text()
            assert str(root) not in text
            assert str(Path(__file__).parents[1]) not in text

    def test_setup_names_the_commit_versions_and_settings(self, root: Path) -> None:
        results.store(root, {"PostgreSQL": self.results()})
        setup = json.loads((root / "benchmarks/results/api.json").read_text())["PostgreSQL"]["setup"]
        assert setup["cores"] == os.cpu_count()
        assert {"Python", "fastapi", "uvicorn", "asyncpg", "orjson"} <= set(setup["versions"])
        assert setup["settings"] == {"RATE_LIMITS": "true"}
        assert setup["commit"]

    def test_document_without_markers_is_not_changed(self, root: Path) -> None:
        (root / "README.md").write_text("no markers\n")
        with pytest.raises(ValueError, match=r"README\.md has no markers"):
            results.store(root, {"PostgreSQL": self.results()})
        assert (root / "README.md").read_text() == "no markers\n"


def test_documents_have_markers() -> None:
    for name in ("README.md", "docs/performance.md"):
        text = (Path(__file__).parents[1] / name).read_text(encoding="utf-8")
        assert text.count(results.BEGIN) == text.count(results.END) == 1


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is available only on Linux")
def test_memory_includes_what_the_process_allocated() -> None:
    before, _ = read_memory(os.getpid())
    held = mmap.mmap(-1, 30 * 2**20)  # new pages: the allocator could reuse memory that earlier tests have freed
    held.write(os.urandom(2**20) * 30)
    after, shared = read_memory(os.getpid())
    assert after - before > 20 * 2**20
    assert shared > len(held)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="affinity is available only on Linux")
def test_pin_moves_a_process_and_its_children() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    core = max(os.sched_getaffinity(0))
    pin(process.pid, core)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert os.sched_getaffinity(process.pid) == os.sched_getaffinity(int(child)) == {core}
    pin(process.pid, None)
    assert os.sched_getaffinity(process.pid) == {core}
    process.communicate(b"\n")


def test_variants_have_names_in_the_tables() -> None:
    assert set(tables.NAMES) == {OURS, BARE, COUNTING, KEPT}
