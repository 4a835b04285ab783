"""`bloxserver emails`: shows the emails to users as their templates make them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bloxserver.cli.startup import fail
from bloxserver.errors import SettingsError
from bloxserver.settings import get_settings

app = typer.Typer(no_args_is_help=True, help="Show the emails to users as their templates make them.")


@app.callback()
def main() -> None:
    """Show the emails to users as their templates make them."""


@app.command()
def preview(
    directory: Annotated[Path, typer.Option("--dir", help="Directory for the files. It is created.")] = Path("emails"),
) -> None:
    """Render all emails with examples, a file with the text and one with the HTML for each, and print their subjects.

    Uses the templates in EMAIL_TEMPLATES_DIR, as the server does. Exits with status 1 if one of them cannot be used.
    """
    from bloxserver.account_emails.kinds import SAMPLES
    from bloxserver.account_emails.rendering import SUBJECT, Templates, billing_url_of

    settings = get_settings()
    try:
        templates = Templates(settings.email_templates_dir)
    except SettingsError as error:
        fail(str(error))
    url = billing_url_of(settings) or "https://example.com/billing"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for kind, samples in SAMPLES.items():
            email = templates.render(kind, samples[0], name="Ada Lovelace", billing_url=url)
            (directory / f"{kind}.txt").write_text(f"{SUBJECT} {email.subject}\n\n{email.text}", encoding="utf-8")
            (directory / f"{kind}.html").write_text(email.html, encoding="utf-8")
            typer.echo(f"{kind}: {email.subject}")
    except OSError as error:
        fail(f"the files cannot be written: {error.strerror}")
