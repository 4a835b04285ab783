"""`bloxserver billing`: sets up billing at Stripe, and compares and repairs what is reported to it."""

from __future__ import annotations

from typing import Annotated

import typer

from bloxserver.cli.startup import fail, load_settings, run
from bloxserver.errors import SettingsError
from bloxserver.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Set up billing at Stripe, and compare and repair what is reported to it.")


@app.callback()
def main() -> None:
    """Set up billing at Stripe, and compare and repair what is reported to it."""


@app.command()
def setup() -> None:
    """Create the product, prices, meters, customer portal and webhook endpoint at Stripe, or verify them.

    The command can be repeated. It prints the signing secret of a new webhook endpoint, which Stripe shows once. Exits
    with status 1 if an object at Stripe differs from what BloxServer needs.
    """
    run(_setup(load_settings()))


async def _setup(settings: Settings) -> None:
    from bloxserver.billing.client import StripeUnavailable, get_stripe
    from bloxserver.billing.setup import set_up

    stripe = get_stripe(settings)
    if stripe is None:
        raise SettingsError(["STRIPE_SECRET_KEY must be set"])
    try:
        done = await set_up(stripe, f"{settings.webhook_base_url}/stripe")
    except StripeUnavailable as error:
        fail(error.message)
    for one in done:
        typer.echo(f"{one.name}: {one.result}")
        if one.secret is not None:
            typer.echo(f"STRIPE_WEBHOOK_SECRET={one.secret}")
    if not all(one.is_right for one in done):
        raise typer.Exit(1)


@app.command()
def reconcile(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the differences, without repairing them or reading customers.")
    ] = False,
) -> None:
    """Compare the usage of billed periods with Stripe's meters, send what Stripe lacks, and read all customers again.

    Prints each period and meter that differs or was repaired. Exits with status 1 if a difference remains. Workers do
    the same every day.
    """
    run(_reconcile(load_settings(), dry_run=dry_run))


async def _reconcile(settings: Settings, *, dry_run: bool) -> None:
    from bloxserver.billing.client import get_stripe
    from bloxserver.billing.metering import PeriodKey
    from bloxserver.billing.reconcile import Reconciler
    from bloxserver.models.database import database

    stripe = get_stripe(settings)
    if stripe is None:
        fail("STRIPE_SECRET_KEY is not set")
    reconciler = Reconciler(database, stripe)
    periods: set[PeriodKey] = set()
    differences = read = failed = 0
    try:
        if not dry_run:
            read, failed = await reconciler.sync_customers()
        async for result in reconciler.reconcile_all(dry_run=dry_run):
            periods.add(result.usage.key)
            differences += result.differs
            if result.differs or result.resent or result.confirmed:
                typer.echo(str(result))
    finally:
        await database.dispose()
    typer.echo(f"periods: {len(periods)}, differences: {differences}, customers read: {read}, not read: {failed}")
    if differences or failed:
        raise typer.Exit(1)
