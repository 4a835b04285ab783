"""`bloxserver rotate-keys`: encrypts every secret with the first key of API_KEY_ENCRYPTION_KEY."""

from __future__ import annotations

import typer

from bloxserver.cli.startup import load_settings, run
from bloxserver.errors import SettingsError
from bloxserver.settings import Settings

BATCH_SIZE = 100
"""Secrets that one transaction encrypts."""


def rotate_keys() -> None:
    """Encrypt all secrets again with the first key of API_KEY_ENCRYPTION_KEY. Then the other keys can be removed.

    The command can be interrupted, repeated, and run while servers run. Exits with status 1 if a secret cannot be
    decrypted with any of the keys.
    """
    run(_rotate_keys(load_settings()))


async def _rotate_keys(settings: Settings) -> None:
    from bloxserver.encryption import get_cipher
    from bloxserver.models.database import database
    from bloxserver.services.llm_keys import rotate_stale_llm_keys
    from bloxserver.services.secrets import rotate_stale
    from bloxserver.services.signing_secrets import rotate_stale_signing_secrets

    cipher = get_cipher(settings)
    if cipher is None:
        raise SettingsError(["API_KEY_ENCRYPTION_KEY must be set"])
    rotated = unreadable = 0
    for rotate in (rotate_stale, rotate_stale_signing_secrets, rotate_stale_llm_keys):
        after = None
        while True:
            async with database.transaction() as session:
                batch = await rotate(session, cipher, BATCH_SIZE, after)
            rotated, unreadable, after = rotated + batch.rotated, unreadable + batch.unreadable, batch.last_id
            if after is None:
                break
    await database.dispose()
    typer.echo(f"encrypted again: {rotated}; cannot be decrypted with any key: {unreadable}")
    if unreadable:
        raise typer.Exit(1)
