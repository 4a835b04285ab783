"""`bloxserver demo`: runs flows on a temporary server and checks the results."""

from __future__ import annotations

import typer


def demo() -> None:
    """Run flows on a temporary server, kill it with kill -9 during an execution, and check every result.

    Exits with status 1 if a check fails.
    """
    from bloxserver.cli.demo_scenario import run_demo

    raise typer.Exit(run_demo())
