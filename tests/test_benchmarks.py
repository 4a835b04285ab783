"""The benchmarks run. What they measure is no test: a slow machine is no fault."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from benchmarks import processor_time
from benchmarks.figures import Figure, percentile, spread, table
from benchmarks.timings import Timing, first_step_after_ms, picked_up_after_ms, seconds_of_all, steady_rate

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(("share", "wanted"), [(0.5, 50), (0.95, 95), (1, 100), (0, 1)])
def test_a_percentile_is_one_of_the_values(share: float, wanted: int) -> None:
    assert percentile(range(100, 0, -1), share) == wanted


def test_a_spread_names_median_tail_and_worst() -> None:
    assert spread([1.0, 2.0, 40.0], digits=0) == "p50 2, p95 40, max 40 ms"


def test_the_table_is_markdown() -> None:
    lines = table([Figure("idle", "SQLite", "worker", "1 %")]).splitlines()
    assert lines[0].split() == ["|", "benchmark", "|", "database", "|", "measured", "|", "value", "|", "target", "|"]
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split("|")[4].strip() == "1 %"


class TestTimings:
    def timing(self, accepted: float, picked_up: float, ended: float) -> Timing:
        """Of an execution whose first step began 10 ms after it was picked up."""
        moments = (accepted, picked_up, picked_up + 0.01, ended)
        return Timing(*(START + timedelta(seconds=moment) for moment in moments))

    def test_waits_are_counted_from_the_acceptance(self) -> None:
        timings = [self.timing(0, 0.25, 1), self.timing(1, 1.5, 3)]
        assert picked_up_after_ms(timings) == [250, 500]
        assert first_step_after_ms(timings) == [260, 510]

    def test_what_was_not_picked_up_has_no_wait(self) -> None:
        assert picked_up_after_ms([Timing(START, None, None, None)]) == []

    def test_a_run_lasts_from_the_first_pick_up_to_the_last_end(self) -> None:
        assert seconds_of_all([self.timing(0, 2, 5), self.timing(0, 1, 4)]) == 4

    def test_the_steady_rate_leaves_out_start_and_tail(self) -> None:
        steady = [self.timing(0, 0, 10 + number / 10) for number in range(1, 9)]
        assert steady_rate([self.timing(0, 0, 1), *steady, self.timing(0, 0, 99)]) == pytest.approx(8 / (99 - 10.1))
        assert steady_rate([self.timing(0, 0, number / 100) for number in range(100)]) == pytest.approx(100)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux says what processes have used")
def test_processor_time_grows_with_work() -> None:
    before = processor_time.of_process(os.getpid())
    while processor_time.between(before, processor_time.of_process(os.getpid())) == 0:
        sum(range(100_000))
    used = processor_time.between(before, processor_time.of_process(os.getpid()))
    assert used is not None
    assert 0 < used < 5


def test_a_process_that_is_gone_has_no_processor_time() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert processor_time.of_process(gone.pid) is None
    assert processor_time.between(1.0, None) is None
    assert processor_time.shown(None) == "?"
