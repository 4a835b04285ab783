from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from bloxserver.api import billing_examples as examples
from bloxserver.api.dependencies import AuthenticatedUser, DbSession
from bloxserver.api.json_bodies import JsonRoute
from bloxserver.api.openapi import error_of, response_of
from bloxserver.api.schemas import Billing, BillingPage, StartCheckoutRequest
from bloxserver.api.scopes import for_all_flows, requires_scope
from bloxserver.billing import checkout
from bloxserver.billing.client import Stripe, get_stripe
from bloxserver.billing.overview import read_billing
from bloxserver.errors import BloxError
from bloxserver.models.enums import Scope
from bloxserver.settings import get_settings

router = APIRouter(prefix="/billing", tags=["billing"], route_class=JsonRoute)


class BillingDisabled(BloxError):
    """The installation has no billing."""

    status = 404

    def __init__(self) -> None:
        super().__init__("billing_disabled", "This server has no billing")


async def _stripe() -> Stripe:
    """The client of Stripe. Raises `BillingDisabled`."""
    stripe = get_stripe(get_settings())
    if stripe is None:
        raise BillingDisabled
    return stripe


ConfiguredStripe = Annotated[Stripe, Depends(_stripe)]
DISABLED = error_of(404, "The server has no billing.", "billing_disabled", "This server has no billing")


@router.get(
    "",
    response_model=Billing,
    operation_id="getBilling",
    summary="Retrieve the subscription",
    responses=response_of(200, "The plan and the subscription.", examples.BILLING) | DISABLED,
)
@requires_scope(Scope.ADMIN)
@for_all_flows
async def get_billing(user: AuthenticatedUser, stripe: ConfiguredStripe, session: DbSession) -> object:
    """Return the user's plan, the state of their subscription, and the prices."""
    return await read_billing(session, user.id)


@router.post(
    "/checkout",
    response_model=BillingPage,
    operation_id="startCheckout",
    summary="Start a checkout",
    responses=response_of(200, "The page of Stripe on which the user subscribes.", examples.CHECKOUT)
    | DISABLED
    | error_of(
        409,
        "The user has a subscription.",
        "subscription_exists",
        "There is a subscription already. Change it in the customer portal.",
    ),
)
@requires_scope(Scope.ADMIN)
@for_all_flows
async def start_checkout(
    user: AuthenticatedUser, stripe: ConfiguredStripe, session: DbSession, body: StartCheckoutRequest | None = None
) -> object:
    """Start a checkout of Stripe. The first one begins with a trial of 14 days. Repeated requests get the same page."""
    return BillingPage(url=await checkout.start_checkout(session, stripe, get_settings(), user.id))


@router.post(
    "/portal",
    response_model=BillingPage,
    operation_id="openBillingPortal",
    summary="Open the customer portal",
    responses=response_of(200, "The page of Stripe on which the user changes or cancels.", examples.PORTAL)
    | DISABLED
    | error_of(409, "The user has no subscription.", "no_customer", "There is no subscription yet. Start a checkout."),
)
@requires_scope(Scope.ADMIN)
@for_all_flows
async def open_portal(user: AuthenticatedUser, stripe: ConfiguredStripe, session: DbSession) -> object:
    """Open the customer portal of Stripe, with invoices, payment methods and cancellation."""
    return BillingPage(url=await checkout.open_portal(session, stripe, get_settings(), user.id))
