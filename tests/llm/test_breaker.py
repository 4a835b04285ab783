"""The circuit breaker: which requests are sent in which state."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from bloxserver.llm.breaker import FAILURES, MAX_PAUSE, OPEN, SUCCESSES, Admission, BreakerState

START = datetime(2026, 3, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def opened() -> BreakerState:
    state = BreakerState()
    for _ in range(FAILURES):
        state = state.failed(START, probe=False)
    return state


def test_opens_after_five_consecutive_failures() -> None:
    state = BreakerState()
    for number in range(1, 5):
        state = state.failed(START, probe=False)
        assert (state.failures, state.admission(START)) == (number, Admission.SENT)
    state = state.failed(START, probe=False)
    assert state.admission(START) is Admission.REFUSED
    assert state.available_at(START) == START + timedelta(seconds=30)


def test_success_resets_the_count_of_failures() -> None:
    state = BreakerState()
    for _ in range(FAILURES - 1):
        state = state.failed(START, probe=False)
    state = state.succeeded(probe=False).failed(START, probe=False)
    assert (state.failures, state.is_closed) == (1, True)


def test_half_open_breaker_admits_one_probe() -> None:
    state = opened()
    later = START + OPEN
    assert state.admission(later - SECOND) is Admission.REFUSED
    assert state.admission(later) is Admission.PROBE
    probing = state.began_probe(later, 60)
    assert probing.admission(later + 59 * SECOND) is Admission.REFUSED
    # A probe without a result does not block the provider.
    assert probing.admission(later + 60 * SECOND) is Admission.PROBE
    assert probing.ended_probe().admission(later) is Admission.PROBE


def test_three_successful_probes_close_it() -> None:
    state = opened()
    later = START + OPEN
    for number in range(SUCCESSES):
        assert state.admission(later) is Admission.PROBE, number
        state = state.began_probe(later, 60).succeeded(probe=True)
    assert state == BreakerState()


def test_failed_probe_opens_it_again() -> None:
    later = START + OPEN
    state = opened().began_probe(later, 60).succeeded(probe=True).began_probe(later, 60).failed(later, probe=True)
    assert (state.successes, state.admission(later + OPEN - SECOND)) == (0, Admission.REFUSED)
    assert state.admission(later + OPEN) is Admission.PROBE


def test_results_of_requests_from_before_it_opened_are_ignored() -> None:
    state = opened()
    assert state.failed(START + 20 * SECOND, probe=False) == state
    assert state.succeeded(probe=False) == state


def test_pause_ends_at_the_time_that_the_provider_names() -> None:
    state = BreakerState().paused(START, 17)
    assert state.admission(START + 16 * SECOND) is Admission.REFUSED
    assert state.admission(START + 17 * SECOND) is Admission.SENT
    assert state.is_closed
    # A shorter pause does not replace a longer one, and no pause is longer than an hour.
    assert state.paused(START, 1) == state
    assert BreakerState().paused(START, 1e300).available_at(START) == START + MAX_PAUSE
    assert BreakerState().paused(START, -5).admission(START) is Admission.SENT
