"""Emails about payments."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from bloxserver.billing.events import PAYMENTS
from bloxserver.billing.invoices import email_of
from bloxserver.models.database import Database
from bloxserver.models.tables import AccountEmailRecord
from bloxserver.services.account_deletions import delete_account
from tests.billing.billing_world import BillingWorld
from tests.stripe_server import Call


def event_of(invoice_id: object, customer_id: str, number: object = 1, kind: str = "invoice.paid") -> dict[str, Any]:
    """An event whose values are never used."""
    invoice = {"object": "invoice", "id": invoice_id, "customer": customer_id, "status": "paid", "amount_paid": 999_999}
    return {"id": f"evt_{number}", "object": "event", "type": kind, "livemode": False, "data": {"object": invoice}}


def invoice_of(world: BillingWorld, customer_id: str, **values: Any) -> dict[str, Any]:
    defaults = {"customer": customer_id, "status": "paid", "amount_paid": 2_900, "currency": "usd", "number": "A-1"}
    return world.stripe.add("invoice", "in", **defaults | values)


async def payments(database: Database) -> list[tuple[str, dict[str, Any]]]:
    async with database.sessions() as session:
        found = await session.scalars(sa.select(AccountEmailRecord).order_by(AccountEmailRecord.id))
        return [(email.event_key, email.data) for email in found if email.kind == "payment_succeeded"]


async def test_paid_invoice_causes_one_email(world: BillingWorld) -> None:
    """Stripe sends both types, and each of them repeatedly."""
    customer_id = await world.customer()
    first, second = (invoice_of(world, customer_id, number=number) for number in ("A-1", None))
    for number, kind in enumerate(PAYMENTS):
        for invoice in (first, second):
            event = event_of(invoice["id"], customer_id, f"{invoice['id']}-{number}", kind)
            assert (await world.send(event)).status_code == 200
    values = {"amount": "29.00", "currency": "USD"}
    assert await payments(world.database) == [
        (f"payment_succeeded:{first['id']}", {**values, "number": "A-1"}),
        (f"payment_succeeded:{second['id']}", {**values, "number": None}),
    ]


@pytest.mark.parametrize("values", [{"status": "open"}, {"amount_paid": 0}, {"customer": "cus_other"}])
async def test_other_invoices_cause_none(world: BillingWorld, values: dict[str, Any]) -> None:
    customer_id = await world.customer()
    invoice = invoice_of(world, customer_id, **values)
    assert (await world.send(event_of(invoice["id"], customer_id))).status_code == 200
    assert await payments(world.database) == []


@pytest.mark.parametrize("invoice_id", ["in_unknown", None, 7, "", "x" * 300, "in_\0"])
async def test_unknown_invoice_causes_none(world: BillingWorld, invoice_id: Any) -> None:
    customer_id = await world.customer()
    assert (await world.send(event_of(invoice_id, customer_id))).status_code == 200
    assert await payments(world.database) == []


async def test_deleted_user_gets_none(world: BillingWorld) -> None:
    customer_id = await world.customer()
    invoice = invoice_of(world, customer_id)
    async with world.database.transaction() as session:
        await delete_account(session, (await world.user()).id)
    assert (await world.send(event_of(invoice["id"], customer_id))).status_code == 200
    assert await payments(world.database) == []


async def test_event_is_repeated_until_stripe_returns_the_invoice(world: BillingWorld) -> None:
    customer_id = await world.customer()
    event = event_of(invoice_of(world, customer_id)["id"], customer_id)

    def fail(call: Call) -> str | None:
        return "500" if "/invoices/" in call.path else None

    world.stripe.fault = fail
    assert (await world.send(event)).status_code == 503
    assert await payments(world.database) == []
    world.stripe.fault = lambda call: None
    assert (await world.send(event)).status_code == 200
    assert len(await payments(world.database)) == 1


@pytest.mark.parametrize(
    ("amount", "currency", "shown"),
    [(2_900, "usd", "29.00"), (123_456, "eur", "1,234.56"), (5, "usd", "0.05"), (4_300, "jpy", "4,300")],
)
def test_amount_has_the_decimals_of_its_currency(amount: int, currency: str, shown: str) -> None:
    email = email_of({"id": "in_1", "amount_paid": amount, "currency": currency})
    assert (email.data["amount"], email.data["currency"]) == (shown, currency.upper())
