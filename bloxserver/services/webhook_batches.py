"""Accepts webhooks that arrive during a transaction together in the next one (group commit).

A commit waits for the disk, and a transaction takes longer than the rest of a request. Each webhook is answered after
its own execution is committed, and the refusal of one has no effect on others. A webhook has a transaction of its own
if its body is large, if its user has a hard limit of runs, or if another transaction has locked its flow.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple
from uuid import UUID
from weakref import WeakKeyDictionary

import structlog
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
from bloxserver.services.executions import Input, check_webhook, receive_webhook, target_of
from bloxserver.services.rate_limits import UNLIMITED, Admission
from bloxserver.services.usage import require_storage

log = structlog.stdlib.get_logger("bloxserver.request")

MAX_BATCH = 64
"""Webhooks in one transaction."""
LARGE_CHARACTERS = 16 * 1024
"""The size of an input from which it has a transaction of its own, so that small ones do not wait for it."""
MAX_TRANSACTIONS = 2
"""Batches at the same time on PostgreSQL: while one waits for the disk, the next one is written."""


class WebhookCall(NamedTuple):
    """A received webhook. `depth` is the call depth that the sender reports."""

    token: str
    given: Input
    depth: int
    admission: Admission
    trace_parent: str | None

    @property
    def is_large(self) -> bool:
        return self.given.payload is not None and len(self.given.payload) >= LARGE_CHARACTERS


Entry = tuple[WebhookCall, asyncio.Future[UUID]]


class WebhookBatches:
    """The webhooks that one process receives for a database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._maximum = 1 if database.is_sqlite else MAX_TRANSACTIONS
        self._waiting: dict[str, deque[Entry]] = {}
        """By token, in the order of their turns."""
        self._running: list[asyncio.Task[None]] = []

    async def receive(self, token: str, given: Input, depth: int, admission: Admission) -> UUID:
        """Return the id of the execution when it is committed; raises as `receive_webhook` does."""
        call = WebhookCall(token, given, depth, admission, current_traceparent())
        if call.is_large:
            return await self._receive_alone(call)
        accepted: asyncio.Future[UUID] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(token, deque()).append((call, accepted))
        # Not by callbacks of the tasks, which run after those that wait for a batch.
        self._running = [task for task in self._running if not task.done()]
        if len(self._running) < self._maximum:
            self._running.append(asyncio.create_task(self._run()))
        try:
            return await accepted
        except _NotInBatch as reason:
            return await self._receive_alone(call, counted=reason.counted)

    async def _receive_alone(self, call: WebhookCall, *, counted: bool = False) -> UUID:
        admission = UNLIMITED if counted else call.admission
        async with self._database.transaction() as session:
            return await receive_webhook(session, call.token, call.given, call.depth, admission)

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
            if not entry[1].done():
                batch.append(entry)
        return batch

    async def _accept(self, entries: Sequence[Entry]) -> None:
        """Accept the webhooks of a batch and set their results."""
        current_tenant.set(object())  # not a tenant that has used a connection before: the batch is of many users
        results: list[UUID | Exception] = []
        try:
            async with self._database.transaction() as session:
                await _accept_batch(session, [call for call, _ in entries], results)
        except Exception as error:
            # One of them may be the cause: each that the batch would have accepted is accepted alone.
            log.debug(
                "webhook batch failed; accepting webhooks alone", reason=describe_error(error), number=len(entries)
            )
            checked = results or [_NotInBatch(counted=False)] * len(entries)
            results = [result if isinstance(result, Exception) else _NotInBatch(counted=True) for result in checked]
        for (_, accepted), result in zip(entries, results, strict=True):
            _resolve(accepted, result)


class _NotInBatch(Exception):
    """The webhook must be accepted in a transaction of its own."""

    def __init__(self, *, counted: bool) -> None:
        """`counted` tells whether the request was counted for the limit of the webhook."""
        super().__init__()
        self.counted = counted


async def _accept_batch(session: AsyncSession, calls: Sequence[WebhookCall], results: list[UUID | Exception]) -> None:
    """Accept those webhooks that can be accepted together. Appends the ids of their executions, or the reasons.

    All results are appended before the executions are inserted.
    """
    webhooks = await read_and_lock_webhooks(session, {call.token for call in calls})
    runs: list[AcceptedRun] = []
    for call in calls:
        try:
            runs.append(run := _run_of(call, webhooks.get(call.token)))
            results.append(run.execution["id"])
        except (BloxError, _NotInBatch) as error:
            results.append(error)
    if runs:
        await insert_runs(session, runs)
        after_commit(session, partial(metrics.EXECUTIONS_ACCEPTED.labels(TriggerType.WEBHOOK.value).inc, len(runs)))
        wake_engine_after_commit(session, WakeReason.EXECUTION)


def _run_of(call: WebhookCall, webhook: LockedWebhook | None) -> AcceptedRun:
    """The execution that the webhook starts. Raises the errors of `receive_webhook`, and `_NotInBatch`."""
    if webhook is None:  # unknown or locked
        raise _NotInBatch(counted=False)
    trigger = webhook.trigger
    plan = trigger.plan
    call.admission.count("webhook", call.token, plan.webhooks_per_minute)
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
        "target": target_of(trigger),
        "started_at": moment,
        "input_payload": call.given.payload,
        "input_encoding": call.given.encoding,
        "depth": call.depth,
        "trace_parent": call.trace_parent,
    }
    period = period_at(moment, trigger.current_period_start, trigger.current_period_end)
    return AcceptedRun(execution, trigger.user_id, period)


def _resolve(accepted: asyncio.Future[UUID], result: UUID | Exception) -> None:
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
