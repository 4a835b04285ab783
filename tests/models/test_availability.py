from __future__ import annotations

from structlog.testing import capture_logs

from bloxserver.models.availability import Availability


def test_lost_and_restored_connections_are_logged_once() -> None:
    state = Availability()
    with capture_logs() as logs:
        state.succeeded()
        state.failed(ValueError("not of the connection"))
        state.failed(ConnectionRefusedError())
        state.failed(ConnectionRefusedError())
        state.succeeded()
        state.succeeded()
    assert [entry["event"] for entry in logs] == ["database connection lost", "database connection restored"]
