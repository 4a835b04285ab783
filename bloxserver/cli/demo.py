"""`bloxserver demo`: runs flows on a temporary server and checks the results."""

from __future__ import annotations

import typer


def demo() -> None:
    """Run flows on a temporary server: a webhook, a manual run, recovery after kill -9, history, statistics.

    Exits with status 1 if a check fails.
    """
    from bloxserver.cli.demo_scenario import run_demo

    raise typer.Exit(run_demo())
