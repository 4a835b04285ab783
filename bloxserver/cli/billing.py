"""`bloxserver billing`: sets up billing at Stripe."""

from __future__ import annotations

import typer

from bloxserver.cli.startup import fail, load_settings, run
from bloxserver.errors import SettingsError
from bloxserver.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Set up billing with Stripe.")


@app.callback()
def billing() -> None:
    """Set up billing with Stripe."""


@app.command()
def setup() -> None:
    """Create the product, prices, meter, customer portal and webhook endpoint at Stripe, or verify them.

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
