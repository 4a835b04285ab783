"""Emails about payments. What an event says about an invoice is not used: the invoice is read from Stripe."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.account_emails.kinds import Email, EmailKind
from bloxserver.account_emails.outbox import enqueue
from bloxserver.billing.client import Stripe
from bloxserver.models.database import release
from bloxserver.models.tables import UserRecord

WITHOUT_DECIMALS = {
    *("bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "ugx", "vnd", "vuv", "xaf", "xof", "xpf")
}
"""Currencies in which Stripe's amounts are not hundredths."""


async def write_payment_email(session: AsyncSession, stripe: Stripe, invoice_id: str) -> None:
    """Write the email about a paid invoice, unless nothing was charged. Raises `StripeUnavailable`.

    Ends the transaction of the session before the request.
    """
    await release(session)
    invoice = await stripe.read_invoice(invoice_id)
    if invoice is None or invoice.get("status") != "paid" or not invoice.get("amount_paid"):
        return
    user_id = await session.scalar(
        sa.select(UserRecord.id).where(
            UserRecord.stripe_customer_id == _customer_of(invoice), UserRecord.deleted_at.is_(None)
        )
    )
    if user_id is not None:
        await enqueue(session, [(user_id, email_of(invoice))])


def email_of(invoice: Mapping[str, Any]) -> Email:
    """The email about a paid invoice."""
    currency: str = invoice["currency"]
    amount = Decimal(invoice["amount_paid"])
    shown = f"{amount:,}" if currency in WITHOUT_DECIMALS else f"{amount / 100:,.2f}"
    data = {"amount": shown, "currency": currency.upper(), "number": invoice.get("number")}
    return Email(EmailKind.PAYMENT_SUCCEEDED, f"payment_succeeded:{invoice['id']}", data)


def _customer_of(invoice: Mapping[str, Any]) -> str | None:
    customer = invoice.get("customer")
    return customer.get("id") if isinstance(customer, Mapping) else customer
