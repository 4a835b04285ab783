"""The calculations of the benchmarks."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from benchmarks import cpu_time
from benchmarks.results import Result, format_table, percentile, summarize
from benchmarks.timings import Timing, claim_latencies_ms, first_step_latencies_ms, steady_rate, total_seconds

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.95, 95), (1, 100), (0, 1)])
def test_percentile_is_one_of_the_values(share: float, expected: int) -> None:
    assert percentile(range(100, 0, -1), share) == expected


def test_summary_has_median_95th_percentile_and_maximum() -> None:
    assert summarize([1.0, 2.0, 40.0], digits=0) == "p50 2, p95 40, max 40 ms"


def test_table_is_aligned_markdown() -> None:
    lines = format_table([Result("idle", "SQLite", "worker", "1 %")]).splitlines()
    assert lines[0].split() == ["|", "benchmark", "|", "database", "|", "measured", "|", "value", "|", "target", "|"]
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split("|")[4].strip() == "1 %"


class TestTimings:
    def timing(self, accepted: float, picked_up: float, ended: float) -> Timing:
        """The times of an execution whose first step starts 10 ms after the claim."""
        moments = (accepted, picked_up, picked_up + 0.01, ended)
        return Timing(*(START + timedelta(seconds=moment) for moment in moments))

    def test_latencies_start_at_the_acceptance(self) -> None:
        timings = [self.timing(0, 0.25, 1), self.timing(1, 1.5, 3)]
        assert claim_latencies_ms(timings) == [250, 500]
        assert first_step_latencies_ms(timings) == [260, 510]

    def test_unclaimed_execution_has_no_latency(self) -> None:
        assert claim_latencies_ms([Timing(START, None, None, None)]) == []

    def test_total_time_is_from_the_first_claim_to_the_last_end(self) -> None:
        assert total_seconds([self.timing(0, 2, 5), self.timing(0, 1, 4)]) == 4

    def test_steady_rate_excludes_ramp_up_and_tail(self) -> None:
        steady = [self.timing(0, 0, 10 + number / 10) for number in range(1, 9)]
        assert steady_rate([self.timing(0, 0, 1), *steady, self.timing(0, 0, 99)]) == pytest.approx(8 / (99 - 10.1))
        assert steady_rate([self.timing(0, 0, number / 100) for number in range(100)]) == pytest.approx(100)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="CPU times are available only on Linux")
def test_cpu_time_increases_with_work() -> None:
    before = cpu_time.process_seconds(os.getpid())
    while cpu_time.difference(before, cpu_time.process_seconds(os.getpid())) == 0:
        sum(range(100_000))
    used = cpu_time.difference(before, cpu_time.process_seconds(os.getpid()))
    assert used is not None
    assert 0 < used < 5


def test_exited_process_has_no_cpu_time() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert cpu_time.process_seconds(gone.pid) is None
    assert cpu_time.difference(1.0, None) is None
    assert cpu_time.format_seconds(None) == "?"
