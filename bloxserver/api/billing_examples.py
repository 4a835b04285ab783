"""Examples of billing in the OpenAPI document."""

from __future__ import annotations

from bloxserver.api.examples import FLOW_ID, NEXT_CURSOR
from bloxserver.billing.overview import PRICES

BILLING = {
    "plan": "pro",
    "planSource": "subscription",
    "status": "trialing",
    "trialEndsAt": "2026-03-16T08:53:45.000000Z",
    "trialAvailable": False,
    "currentPeriodStart": "2026-03-02T08:53:45.000000Z",
    "currentPeriodEnd": "2026-03-16T08:53:45.000000Z",
    "cancelAt": None,
    "paymentProblem": None,
    "graceEndsAt": None,
    "flows": {
        "limit": 100,
        "used": 1,
        "running": [{"id": FLOW_ID, "name": "Orders"}],
        "stoppedByPlan": [],
    },
    "prices": PRICES,
}
USAGE_PERIOD = {
    "periodStart": "2026-02-01T00:00:00.000000Z",
    "periodEnd": "2026-03-01T00:00:00.000000Z",
    "runs": 98120,
    "inputTokens": 1204000,
    "outputTokens": 310200,
}
FLOW_USAGE_PAGE = {
    "periodStart": "2026-03-01T00:00:00.000000Z",
    "periodEnd": "2026-04-01T00:00:00.000000Z",
    "items": [
        {
            "flowId": FLOW_ID,
            "flowName": "Orders",
            "runs": 9120,
            "inputTokens": 804000,
            "outputTokens": 120200,
        }
    ],
    "nextCursor": NEXT_CURSOR,
}
CHECKOUT = {"url": "https://checkout.stripe.com/c/pay/cs_live_a1b2c3"}
PORTAL = {"url": "https://billing.stripe.com/p/session/live_a1b2c3"}
RECEIVED_EVENT = {"received": True}
