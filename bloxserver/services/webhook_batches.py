"""Accepts webhooks that arrive during a transaction together in the next one (group commit).

A commit waits for the disk, and a transaction takes longer than the rest of a request. Each webhook is answered after
its own execution is committed, and the refusal of one has no effect on others. A webhook has a transaction of its own
if its body is large, if its sender must be verified or has sent an idempotency key, if its user has a hard limit of
runs, or if another transaction has locked its flow.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple
from weakref import WeakKeyDictionary

import structlog
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.errors import BloxError
from bloxserver.ids import new_id
from bloxserver.models.connection_pool import current_tenant
from bloxserver.models.database import Database, WakeReason, after_commit, wake_engine_after_commit
from bloxserver.models.enums import TriggerType
from bloxserver.models.transient_errors import describe_error
from bloxserver.observability import metrics
from bloxserver.observability.tracing import current_traceparent
from bloxserver.queries.triggers import LockedWebhook, read_and_lock_webhooks
from bloxserver.queries.usage import period_at
from bloxserver.services.accepted_runs import AcceptedRun, insert_runs
from bloxserver.services.executions import target_of, trigger_context
from bloxserver.services.rate_limits import UNLIMITED
from bloxserver.services.usage import require_storage
from bloxserver.services.webhook_deliveries import Rejection, not_required, record_rejection, record_rejections
from bloxserver.services.webhook_responses import response_wait
from bloxserver.services.webhooks import AcceptedWebhook, WebhookCall, check_webhook, receive_webhook

log = structlog.stdlib.get_logger("bloxserver.request")

MAX_BATCH = 64
"""Webhooks in one transaction."""
LARGE_CHARACTERS = 16 * 1024
"""The size of an input from which it has a transaction of its own, so that small ones do not wait for it."""
MAX_TRANSACTIONS = 2
"""Batches at the same time on PostgreSQL: while one waits for the disk, the next one is written."""


class Entry(NamedTuple):
    """A call that waits for its transaction."""

    call: WebhookCall
    trace_parent: str | None
    accepted: asyncio.Future[AcceptedWebhook]


def is_large(call: WebhookCall) -> bool:
    """Whether a call would delay others in its transaction."""
    return call.given.payload is not None and len(call.given.payload) >= LARGE_CHARACTERS


class WebhookBatches:
    """The webhooks that one process receives for a database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._maximum = 1 if database.is_sqlite else MAX_TRANSACTIONS
        self._waiting: dict[str, deque[Entry]] = {}
        """By token, in the order of their turns."""
        self._running: list[asyncio.Task[None]] = []

    async def receive(self, call: WebhookCall) -> AcceptedWebhook:
        """Return the execution when it is committed; raises as `receive_webhook` does."""
        if call.has_key or is_large(call):
            return await self._receive_alone(call)
        accepted: asyncio.Future[AcceptedWebhook] = asyncio.get_running_loop().create_future()
        entry = Entry(call, current_traceparent(), accepted)
        self._waiting.setdefault(call.token, deque()).append(entry)
        # Not by callbacks of the tasks, which run after those that wait for a batch.
        self._running = [task for task in self._running if not task.done()]
        if len(self._running) < self._maximum:
            self._running.append(asyncio.create_task(self._run()))
        try:
            return await accepted
        except _NotInBatch as reason:
            return await self._receive_alone(call, counted=reason.counted)

    async def _receive_alone(self, call: WebhookCall, *, counted: bool = False) -> AcceptedWebhook:
        if counted:
            call = call._replace(admission=UNLIMITED)
        try:
            async with self._database.transaction() as session:
                return await receive_webhook(session, call)
        except BloxError as error:
            await self._record_rejection(call, error)
            raise

    async def _record_rejection(self, call: WebhookCall, rejection: BloxError) -> None:
        """Record that the call was rejected, in a transaction of its own."""
        with not_required():
            async with self._database.transaction() as session:
                await record_rejection(session, call.token, rejection, len(call.body))

    async def _run(self) -> None:
        await asyncio.sleep(0)  # for webhooks that arrive in the same turn of the event loop
        while entries := self._next_batch():
            await self._accept(entries)

    def _next_batch(self) -> list[Entry]:
        """Remove and return the webhooks of the next transaction. The tokens take turns."""
        batch: list[Entry] = []
        while self._waiting and len(batch) < MAX_BATCH:
            token, entries = next(iter(self._waiting.items()))
            del self._waiting[token]
            entry = entries.popleft()
            if entries:
                self._waiting[token] = entries
            if not entry.accepted.done():
                batch.append(entry)
        return batch

    async def _accept(self, entries: Sequence[Entry]) -> None:
        """Accept the webhooks of a batch and set their results."""
        current_tenant.set(object())  # not a tenant that has used a connection before: the batch is of many users
        results: list[AcceptedWebhook | Exception] = []
        try:
            async with self._database.transaction() as session:
                await _accept_batch(session, entries, results)
        except PoolTimeout as error:
            results = [error] * len(entries)  # alone, each would wait for a connection once more
        except Exception as error:
            # One of them may be the cause: each that the batch would have accepted is accepted alone.
            log.debug(
                "webhook batch failed; accepting webhooks alone", reason=describe_error(error), number=len(entries)
            )
            results = [result if isinstance(result, Exception) else _NotInBatch(counted=True) for result in results]
            results += [_NotInBatch(counted=False)] * (len(entries) - len(results))
        for entry, result in zip(entries, results, strict=True):
            _resolve(entry.accepted, result)


class _NotInBatch(Exception):
    """The webhook must be accepted in a transaction of its own."""

    def __init__(self, *, counted: bool) -> None:
        """`counted` tells whether the request was counted for the limit of the webhook."""
        super().__init__()
        self.counted = counted


async def _accept_batch(
    session: AsyncSession, entries: Sequence[Entry], results: list[AcceptedWebhook | Exception]
) -> None:
    """Accept those webhooks that can be accepted together. Appends their executions, or the reasons.

    All results are appended before the executions are inserted.
    """
    webhooks = await read_and_lock_webhooks(session, {entry.call.token for entry in entries})
    runs: list[AcceptedRun] = []
    rejections: list[Rejection] = []
    for entry in entries:
        webhook = webhooks.get(entry.call.token)
        try:
            runs.append(run := _run_of(entry, webhook))
            wait = None if webhook is None else response_wait(webhook.trigger)
            results.append(AcceptedWebhook(run.execution["id"], wait=wait))
        except _NotInBatch as error:
            results.append(error)
        except BloxError as error:
            results.append(error)
            if webhook is not None:
                rejections.append(Rejection(webhook.trigger.trigger_id, error, len(entry.call.body)))
    if rejections:
        await record_rejections(session, rejections)
    if runs:
        await insert_runs(session, runs)
        after_commit(session, partial(metrics.EXECUTIONS_ACCEPTED.labels(TriggerType.WEBHOOK.value).inc, len(runs)))
        wake_engine_after_commit(session, WakeReason.EXECUTION)


def _run_of(entry: Entry, webhook: LockedWebhook | None) -> AcceptedRun:
    """The execution that the webhook starts. Raises the errors of `receive_webhook`, and `_NotInBatch`."""
    call = entry.call
    if webhook is None:  # unknown or locked
        raise _NotInBatch(counted=False)
    trigger = webhook.trigger
    plan = trigger.plan
    call.admission.count("webhook", call.token, plan.webhooks_per_minute)
    if trigger.config.get("signature") is not None:
        raise _NotInBatch(counted=True)
    check_webhook(trigger, call.depth)
    require_storage(plan, trigger.stored_bytes)
    if plan.hard_run_limit is not None:
        raise _NotInBatch(counted=True)
    moment = now()
    execution = {
        "id": new_id(),
        "flow_id": trigger.flow_id,
        "flow_version_id": webhook.version_id,
        "flow_version": webhook.version,
        "trigger_id": trigger.trigger_id,
        "trigger_type": TriggerType.WEBHOOK,
        "target": target_of(trigger.config),
        "started_at": moment,
        "input_payload": call.given.payload,
        "input_encoding": call.given.encoding,
        "depth": call.depth,
        "trace_parent": entry.trace_parent,
        "vars_id": webhook.vars_id,
        "trigger_context": trigger_context(trigger, call.facts),
    }
    period = period_at(moment, trigger.current_period_start, trigger.current_period_end)
    return AcceptedRun(execution, trigger.user_id, period)


def _resolve(accepted: asyncio.Future[AcceptedWebhook], result: AcceptedWebhook | Exception) -> None:
    if accepted.done():
        return  # the request was cancelled
    if isinstance(result, Exception):
        accepted.set_exception(result)
    else:
        accepted.set_result(result)


_batches: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Database, WebhookBatches]] = WeakKeyDictionary()


def batches_of(database: Database) -> WebhookBatches:
    """The batches of the running event loop for this database."""
    by_database = _batches.setdefault(asyncio.get_running_loop(), {})
    if database not in by_database:
        by_database[database] = WebhookBatches(database)
    return by_database[database]
