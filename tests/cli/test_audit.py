"""Options of `bloxserver audit export`. `tests/slow/test_cli_audit.py` exports events."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from bloxserver.cli import app


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--since", "yesterday"], "'yesterday' is not a time in ISO 8601"),
        (["--until", "0001-01-01T00:00:00+01:00"], "is not a time in ISO 8601"),
        (["--since", ""], "'' is not a time in ISO 8601"),
        (["--action", "flow.unknown"], "'flow.unknown' is not one of"),
        (["--unknown"], "No such option"),
    ],
)
def test_invalid_option_is_refused(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["audit", "export", *arguments], env={"COLUMNS": "1000", "TERM": "dumb"})
    assert result.exit_code == 2
    assert message in result.output
