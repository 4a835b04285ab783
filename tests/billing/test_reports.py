"""Reports are sent, and each counts once at Stripe, whatever fails."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from bloxserver.billing import reports as module
from bloxserver.billing.meter import Answer, Outcome
from bloxserver.billing.reports import BATCH, backoff_after, claim_reports, delete_old_reports, end_attempt
from bloxserver.clock import now
from tests.billing.metering_world import MeteringWorld, Subscriber
from tests.metric_increase import measure_increase
from tests.stripe_server import Call

EVENTS = "/v1/billing/meter_events"


@pytest.fixture
async def subscriber(metering: MeteringWorld) -> Subscriber:
    """A subscriber with a report of 3 runs."""
    subscriber = await metering.subscriber()
    await metering.accept(subscriber, 3)
    await metering.cut()
    return subscriber


def sent_events(metering: MeteringWorld) -> list[Call]:
    return [call for call in metering.server.calls if call.path == EVENTS]


async def test_report_is_sent_once(metering: MeteringWorld, subscriber: Subscriber) -> None:
    with measure_increase("bloxserver_meter_reports_total", outcome="sent") as sent:
        assert [await metering.send() for _ in range(2)] == [1, 0]
    assert sent.number == 1
    [report] = await metering.reports()
    assert (report.attempts, report.due_at, report.error) == (1, None, None)
    assert report.sent_at is not None
    [call] = sent_events(metering)
    payload = {"stripe_customer_id": subscriber.customer_id, "value": "3"}
    timestamp = str(int(report.timestamp.timestamp()))
    assert call.values == {
        "event_name": "bloxserver_runs",
        "identifier": report.identifier,
        "timestamp": timestamp,
        "payload": payload,
    }


async def test_many_reports_are_sent_by_several_processes_once_each(metering: MeteringWorld) -> None:
    subscribers = [await metering.subscriber() for _ in range(3)]
    for _ in range(BATCH):
        await asyncio.gather(*(metering.accept(subscriber) for subscriber in subscribers))
        await metering.cut()
    assert sum(await asyncio.gather(*(metering.send() for _ in range(4)))) == 3 * BATCH
    assert len(sent_events(metering)) == 3 * BATCH
    assert [metering.at_stripe(subscriber) for subscriber in subscribers] == [BATCH] * 3


@pytest.mark.parametrize("fault", ["500", "429", "lost"])
async def test_failed_attempt_is_repeated_and_counts_once(
    metering: MeteringWorld, subscriber: Subscriber, fault: str
) -> None:
    metering.server.fault = lambda call: fault
    with measure_increase("bloxserver_stripe_errors_total", kind="APIError") as errors:
        await metering.send()
    assert errors.number == (fault == "500")
    [report] = await metering.reports()
    assert (report.sent_at, report.attempts, len(sent_events(metering))) == (None, 1, 1)
    assert report.due_at is not None
    assert report.due_at > now() + timedelta(seconds=20)
    # Stripe certainly has not processed a request for which there were too many.
    assert (report.uncertain_since is None) == (fault == "429")
    assert report.error is not None
    metering.server.fault = lambda call: None
    assert await metering.send() == 0
    await metering.make_due()
    await metering.send()
    [report] = await metering.reports()
    assert (report.sent_at is not None, report.attempts, report.error) == (True, 2, None)
    assert metering.at_stripe(subscriber) == 3


@pytest.mark.parametrize("fault", ["429", "lost"])
async def test_uncertainty_begins_with_the_first_unknown_outcome(
    metering: MeteringWorld, subscriber: Subscriber, fault: str
) -> None:
    metering.server.fault = lambda call: fault
    await metering.send()
    [before] = await metering.reports()
    metering.server.fault = lambda call: "429"
    await metering.make_due()
    await metering.send()
    [report] = await metering.reports()
    assert report.uncertain_since == before.uncertain_since


async def test_process_that_ends_after_sending_leaves_a_report_that_counts_once(
    metering: MeteringWorld, subscriber: Subscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def end(*arguments: object) -> None:
        raise ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(module, "end_attempt", end)
        with pytest.raises(ConnectionError):
            await metering.send()
    assert metering.at_stripe(subscriber) == 3
    assert await metering.send() == 0
    await metering.make_due()
    await metering.send()
    [report] = await metering.reports()
    assert (report.sent_at is not None, metering.at_stripe(subscriber)) == (True, 3)


async def test_no_transaction_is_open_during_a_request(metering: MeteringWorld, subscriber: Subscriber) -> None:
    release, arrived = asyncio.Event(), asyncio.Event()

    def hold(call: Call) -> asyncio.Event:
        arrived.set()
        return release

    metering.server.hold = hold
    sending = asyncio.create_task(metering.send())
    await arrived.wait()
    assert [pool.checkedout() for pool in metering.database.pools().values()] == [0] * len(metering.database.pools())
    assert await metering.send() == 0
    release.set()
    assert await sending == 1


async def test_result_of_an_attempt_whose_time_is_over_is_ignored(
    metering: MeteringWorld, subscriber: Subscriber
) -> None:
    async with metering.database.transaction() as session:
        [first] = await claim_reports(session, now())
    await metering.make_due()
    async with metering.database.transaction() as session:
        [second] = await claim_reports(session, now())
        await end_attempt(session, first, Answer(Outcome.REFUSED, "400 x"), now())
    [report] = await metering.reports()
    assert (report.due_at, report.error, report.attempts) == (second.until, None, 2)


async def test_refused_report_is_kept_with_its_error(metering: MeteringWorld, subscriber: Subscriber) -> None:
    await metering.change_reports(timestamp=now() + timedelta(hours=1))
    with measure_increase("bloxserver_meter_reports_total", outcome="failed") as failed:
        await metering.send()
    assert failed.number == 1
    [report] = await metering.reports()
    assert (report.error, report.sent_at, report.due_at) == ("400 timestamp_too_far_in_past", None, None)
    assert report.uncertain_since is None
    assert await metering.send() == 0


async def test_report_of_unknown_outcome_is_not_repeated_after_20_hours(
    metering: MeteringWorld, subscriber: Subscriber
) -> None:
    await metering.change_reports(uncertain_since=now() - timedelta(hours=20, minutes=1), attempts=9)
    assert await metering.send() == 0
    assert sent_events(metering) == []
    [report] = await metering.reports()
    assert (report.error, report.due_at, report.sent_at) == ("outcome unknown", None, None)


async def test_report_that_stripe_certainly_lacks_is_sent_after_20_hours(
    metering: MeteringWorld, subscriber: Subscriber
) -> None:
    await metering.change_reports(created_at=now() - timedelta(hours=30), attempts=9)
    await metering.send()
    assert metering.at_stripe(subscriber) == 3


def test_pauses_grow_up_to_an_hour() -> None:
    assert [backoff_after(attempts).total_seconds() for attempts in (1, 2, 3, 8, 9, 1_000)] == [
        *(30, 60, 120, 3_600),
        *(3_600, 3_600),
    ]


async def test_old_sent_reports_are_deleted(metering: MeteringWorld, subscriber: Subscriber) -> None:
    long_ago = now() - timedelta(days=101)
    await metering.change_reports(created_at=long_ago)
    for sent_at, left in ((None, 1), (long_ago, 0)):
        await metering.change_reports(sent_at=sent_at)
        async with metering.database.transaction() as session:
            assert await delete_old_reports(session, now()) is False
        assert len(await metering.reports()) == left
