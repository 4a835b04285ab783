"""Random sequences of calls lead to what a model says. tests/slow/test_state_machine.py runs more of them."""

from __future__ import annotations

import pytest

from bloxserver.settings import Settings
from tests.state_machine.running import run_state_machine


@pytest.mark.usefixtures("live_database")
def test_random_calls_lead_to_what_the_model_says(live_settings: Settings) -> None:
    run_state_machine(live_settings, examples=8, steps=18)
