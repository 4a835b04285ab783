"""A server on loopback that stands in for Stripe: the objects that BloxServer uses, idempotency keys and faults."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.listening import listening

DAY = 86_400
MAX_PAST_DAYS = 35
"""How far back Stripe accepts meter events."""

Fault = Callable[["Call"], str | None]
"""Decides about a request: `lost` (done, without an answer), `500`, `429`, `hang`, or None."""


@dataclass(frozen=True)
class Call:
    method: str
    path: str
    values: dict[str, Any]
    """The form or query, with the nested names that Stripe uses as nested objects."""
    key: str | None
    """The idempotency key."""


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "invalid") -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"type": "invalid_request_error", "message": message, "code": code}}


@dataclass
class StripeServer:
    """`objects` has all objects by their ids. Tests change them, as Stripe or the customer would."""

    port: int = 0
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    fault: Fault = lambda call: None
    hold: Callable[[Call], asyncio.Event | None] = lambda call: None
    """Returns the event for which the answer waits. It is the answer of the time of the request."""
    meter_events: list[dict[str, Any]] = field(default_factory=list)
    identifiers: set[str] = field(default_factory=set)
    """Those of which an event is refused. Stripe forgets them after 24 hours or later."""
    _answers: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [one for one in self.objects.values() if one["object"] == kind]

    def add(self, kind: str, prefix: str, **values: Any) -> dict[str, Any]:
        made = {"id": f"{prefix}_{next(self._numbers)}", "object": kind, "created": int(time.time()), **values}
        self.objects[made["id"]] = made
        return made

    def subscribe(self, customer_id: str, lookup_key: str, status: str = "active", **values: Any) -> dict[str, Any]:
        """A subscription of the customer, as checkout creates it."""
        start = int(time.time()) - DAY
        item = {
            "id": f"si_{next(self._numbers)}",
            "object": "subscription_item",
            "price": {"id": f"price_{lookup_key}", "object": "price", "lookup_key": lookup_key},
            "current_period_start": values.pop("period_start", start),
            "current_period_end": values.pop("period_end", start + 30 * DAY),
        }
        defaults: dict[str, Any] = {
            "status": status,
            "customer": customer_id,
            "cancel_at": None,
            "cancel_at_period_end": False,
        }
        defaults |= {"trial_start": None, "trial_end": None, "items": {"object": "list", "data": [item]}}
        return self.add("subscription", "sub", **defaults | values)

    def sum_of(self, customer_id: str, event_name: str, start: float = 0, end: float = float("inf")) -> int:
        """The sum of a meter, as Stripe bills it."""
        return sum(
            int(event["payload"]["value"])
            for event in self.meter_events
            if event["payload"]["stripe_customer_id"] == customer_id
            and event["event_name"] == event_name
            and start <= event["timestamp"] < end
        )

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        while True:
            call = await _read(reader)
            self.calls.append(call)
            fault = self.fault(call)
            if fault == "hang":
                await asyncio.Event().wait()
            if fault in ("500", "429"):
                status, body = int(fault), {"error": {"type": "api_error", "message": "fault"}}
            else:
                status, body = self._answer(call)
            if fault == "lost":
                writer.close()
                return
            text = json.dumps(body).encode()
            if (held := self.hold(call)) is not None:
                await held.wait()
            head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
            writer.write(head.encode() + text)
            await writer.drain()

    def _answer(self, call: Call) -> tuple[int, dict[str, Any]]:
        if call.method == "POST" and call.key is not None and call.key in self._answers:
            return self._answers[call.key]
        try:
            answer = 200, self._handle(call)
        except Refused as refused:
            return refused.status, refused.body
        if call.method == "POST" and call.key is not None:
            self._answers[call.key] = answer
        return answer

    def _handle(self, call: Call) -> dict[str, Any]:
        path = call.path.removeprefix("/v1/")
        if path == "billing/meter_events":
            return self._record(call.values)
        if path.endswith("/event_summaries"):
            return self._summaries(call)
        kind, prefix = KINDS[path] if path in KINDS else KINDS[path.rpartition("/")[0]]
        if path not in KINDS:
            found = self.objects.get(path.rpartition("/")[2])
            if found is None:
                raise Refused(404, "No such object", "resource_missing")
            if call.method == "DELETE":
                found["status"] = "canceled"
            found.update(call.values)
            return found
        if call.method == "POST":
            made = self.add(kind, prefix, **call.values)
            if kind.endswith("session"):
                made["url"] = f"https://stripe.example/{made['id']}"
            if kind == "webhook_endpoint":
                made["secret"] = "whsec_of-the-endpoint"
            return made
        return {"object": "list", "url": call.path, "has_more": False, "data": self._listed(kind, call.values)}

    def _listed(self, kind: str, values: dict[str, Any]) -> list[dict[str, Any]]:
        found = self.of_kind(kind)
        if "customer" in values:
            found = [one for one in found if one["customer"] == values["customer"]]
        if kind == "billing.meter" and "status" in values:
            found = [one for one in found if one.get("status", "active") == values["status"]]
        if "lookup_keys" in values:
            found = [one for one in found if one.get("lookup_key") in values["lookup_keys"]]
        return found

    def _record(self, values: dict[str, Any]) -> dict[str, Any]:
        """Accept a meter event as Stripe does: once for each identifier, and up to 35 days back."""
        timestamp = int(values.get("timestamp", time.time()))
        if values["identifier"] in self.identifiers:
            raise Refused(400, f"An event already exists with identifier {values['identifier']}.", "duplicate")
        if not time.time() - MAX_PAST_DAYS * DAY <= timestamp <= time.time() + 300:
            raise Refused(400, "The timestamp is outside of the window", "timestamp_too_far_in_past")
        event = {"object": "billing.meter_event", **values, "timestamp": timestamp}
        self.meter_events.append(event)
        self.identifiers.add(values["identifier"])
        return event

    def _summaries(self, call: Call) -> dict[str, Any]:
        """The sum of a customer's events, of whole minutes."""
        meter = self.objects[call.path.split("/")[-2]]
        customer_id, start, end = call.values["customer"], int(call.values["start_time"]), int(call.values["end_time"])
        if start % 60 or end % 60 or start >= end:
            raise Refused(400, "Times must be aligned with minute boundaries")
        total = float(self.sum_of(customer_id, meter["event_name"], start, end))
        made = {"id": "mtrusg_1", "object": "billing.meter_event_summary", "meter": meter["id"], "livemode": False}
        made |= {"aggregated_value": total, "start_time": start, "end_time": end}
        return {"object": "list", "url": call.path, "has_more": False, "data": [made] if total else []}


KINDS = {
    "customers": ("customer", "cus"),
    "subscriptions": ("subscription", "sub"),
    "checkout/sessions": ("checkout.session", "cs"),
    "billing_portal/sessions": ("billing_portal.session", "bps"),
    "billing_portal/configurations": ("billing_portal.configuration", "bpc"),
    "invoices": ("invoice", "in"),
    "products": ("product", "prod"),
    "prices": ("price", "price"),
    "billing/meters": ("billing.meter", "mtr"),
    "webhook_endpoints": ("webhook_endpoint", "we"),
}
"""The kinds of objects and the prefixes of their ids, by path."""


@asynccontextmanager
async def stripe_server() -> AsyncIterator[StripeServer]:
    server = StripeServer()
    async with listening(server.serve) as server.port:
        yield server


async def _read(reader: StreamReader) -> Call:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = (await reader.readexactly(int(headers.get("content-length", 0)))).decode()
    url = urlsplit(target)
    return Call(method, url.path, _nested(parse_qsl(body or url.query)), headers.get("idempotency-key"))


def _nested(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """`a[b][0]=1` as `{"a": {"b": [1]}}`."""
    values: dict[str, Any] = {}
    for name, value in pairs:
        first, *others = name.replace("]", "").split("[")
        inner, last = values, first
        for part in others:
            inner = inner.setdefault(last, {})
            last = part
        inner[last] = _typed(last, value)
    nested: dict[str, Any] = _with_lists(values)
    return nested


TEXTS = ("unit_amount_decimal", "value", "identifier", "timestamp")
"""Members that remain texts, although they may have only digits."""


def _typed(name: str, value: str) -> Any:
    if value in ("true", "false"):
        return value == "true"
    if value == "inf":
        return None
    return (
        int(value)
        if value.isdigit() and name not in ("unit_amount_decimal", "value", "identifier", "timestamp")
        else value
    )


def _with_lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    members = {name: _with_lists(member) for name, member in value.items()}
    return [*members.values()] if members and all(name.isdigit() for name in members) else members
