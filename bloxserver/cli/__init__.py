"""The command line: `bloxserver serve`, `worker`, `migrate`, `status`, `prune`, `rotate-keys`, `users`, `api-keys`,
`audit`, `billing`, `emails`, `demo`, `check`.

Command modules import the rest of the package inside their functions, so that `bloxserver --help` starts fast.
"""

from __future__ import annotations

from typing import Annotated

import typer

from bloxserver import __version__
from bloxserver.cli import (
    api_keys,
    audit,
    billing,
    check,
    demo,
    emails,
    migrate,
    prune,
    rotate_keys,
    serve,
    status,
    users,
    worker,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="A self-hosted control plane for AI-agent workflows. Settings come from the environment and from .env.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A self-hosted control plane for AI-agent workflows. Settings come from the environment and from .env."""


for command in (
    serve.serve,
    worker.worker,
    migrate.migrate,
    status.status,
    prune.prune,
    rotate_keys.rotate_keys,
):
    app.command()(command)
app.add_typer(users.app, name="users")
app.add_typer(api_keys.app, name="api-keys")
app.add_typer(audit.app, name="audit")
app.add_typer(billing.app, name="billing")
app.add_typer(emails.app, name="emails")
app.command()(demo.demo)
app.command()(check.check)
