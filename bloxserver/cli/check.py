"""`bloxserver check`: reports the problems of an organism."""

from __future__ import annotations

from typing import Annotated

import typer

from bloxserver.cli.startup import fail, load_settings
from bloxserver.errors import SettingsError


def check(
    file: Annotated[typer.FileBinaryRead, typer.Argument(metavar="FILE", help="The organism; - reads standard input.")],
    settings: Annotated[
        bool,
        typer.Option("--settings/--no-settings", help="Also report missing settings."),
    ] = True,
) -> None:
    """Validate an organism. Prints every problem with its line, its column and how to fix it.

    The command reads the settings of this installation, for example whether a language model is configured. It does not
    read the stored secrets; POST /api/v1/organisms/validate does. Exits with status 1 if there is an error, and with 0
    if there are only warnings.
    """
    from bloxserver.blocks.registry import get_registry
    from bloxserver.services.validation import check_definition

    name = getattr(file, "name", "<stdin>")
    try:
        get_registry()
    except SettingsError as error:
        fail(str(error))
    problems = check_definition(load_settings() if settings else None, file.read())
    for problem in problems:
        location = f"{name}:{problem.line}:{problem.column}"
        typer.echo(f"{location}: {problem.severity}: {problem.message} ({problem.hint}) [{problem.code}]")
    errors = sum(problem.severity == "error" for problem in problems)
    typer.echo(f"{name}: {errors} errors, {len(problems) - errors} warnings")
    raise typer.Exit(1 if errors else 0)
