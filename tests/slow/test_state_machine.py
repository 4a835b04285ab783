"""Many and long random sequences of calls. tests/api/test_state_machine.py runs a few of them."""

from __future__ import annotations

import pytest

from bloxserver.settings import Settings
from tests.state_machine.running import run_state_machine


@pytest.mark.usefixtures("live_database")
def test_many_random_calls_lead_to_what_the_model_says(live_settings: Settings) -> None:
    run_state_machine(live_settings, examples=60, steps=30)
