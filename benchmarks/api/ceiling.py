"""The bare server: what a competent person would write by hand on the same schema and the same database.

`python -m benchmarks.api.ceiling` serves it with uvicorn, uvloop and httptools, as `bloxserver serve` is served. It is
one ASGI function without a framework: no authentication, no limits, no validation, no middleware, no logs and no
metrics. The ids of the user and of the flow are given at its start. Its answers have the members of ours, written by
orjson. asyncpg has a pool of 10 connections, the default size of ours. SQLite has one thread for reads and one for
writes, with the settings of our connections, and each request is one call of its thread.

| path | what it does |
|---|---|
| `/floor` | the answer of `/health/live`, without a database |
| `/counting/list` | `count(*)` over the flow and its 50 newest executions, in one statement |
| `/counting/stats` | aggregates over all executions of the flow, in one statement |
| `/kept/list` | the sum of the rows of `execution_totals`, and the 50 newest executions, in one statement |
| `/kept/stats` | the sums of the rows of `execution_totals` and the newest start, in one statement |
| `/flows` | a count and the 20 newest flows of the user, in one statement |
| `/flow` | one flow, in one statement |
| `/webhook/TOKEN` | checks the token, counts the run and inserts the execution |

A webhook reads the trigger by its token, checks that it is enabled and that its flow is running, counts the run in
one of 16 rows of `usage_records` as ours does, and inserts the execution with its payload. This is one statement on
PostgreSQL, and three in one transaction on SQLite, where no statement can write two tables. Each request commits on
its own before it is answered. The triggers of the database run here as well.
"""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import orjson
import uuid_utils
import uvicorn

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

SLOTS = 16
PAGE_SIZE = 50
FLOWS_PAGE_SIZE = 20
ACCEPTED = "Webhook received and execution started"


class Store(Protocol):
    """The statements, on one database. Rows are tuples or can be indexed like them."""

    async def open(self) -> None: ...

    async def read_page(self, kept: bool, flow_id: str, limit: int) -> list[Any]:
        """Rows of total, id, status, trigger type, start and duration."""
        ...

    async def read_stats(self, kept: bool, flow_id: str) -> Any:
        """Total, successes, errors, mean duration and newest start."""
        ...

    async def read_flows(self, user_id: str, limit: int) -> list[Any]:
        """Rows of total, id, name, description, status and time of the last change."""
        ...

    async def read_flow(self, flow_id: str) -> Any: ...

    async def accept(self, token: str, execution_id: str, now: datetime, payload: str, slot: int) -> bool:
        """Whether the token belongs to a running flow."""
        ...


@dataclass
class Ids:
    user: str
    flow: str


class Application:
    def __init__(self, store: Store, ids: Ids) -> None:
        self._store = store
        self._ids = ids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await self._store.open()
            gc.collect()
            gc.freeze()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        status, body = await self._respond(scope["path"], receive)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _respond(self, path: str, receive: Receive) -> tuple[int, bytes]:
        name, _, rest = path[1:].partition("/")
        match name:
            case "webhook":
                return await self._webhook(rest, receive)
            case "counting" | "kept":
                answer = self._list if rest == "list" else self._stats
                return 200, await answer(name == "kept")
            case "flows":
                return 200, await self._flows()
            case "flow":
                return 200, await self._flow()
            case "floor":
                moment = datetime.now(UTC).isoformat()
                return 200, orjson.dumps({"status": "alive", "timestamp": moment})
        return 404, b"{}"

    async def _list(self, kept: bool) -> bytes:
        rows = await self._store.read_page(kept, self._ids.flow, PAGE_SIZE)
        total = rows[0][0] if rows else 0
        items = [
            {"id": row[1], "status": row[2], "triggerType": row[3], "startedAt": row[4], "durationMs": row[5]}
            for row in rows
        ]
        return _dump(_page(items, total, PAGE_SIZE))

    async def _stats(self, kept: bool) -> bytes:
        total, successes, errors, mean, newest = await self._store.read_stats(kept, self._ids.flow)
        return _dump(
            {
                "flowId": self._ids.flow,
                "executionsTotal": total,
                "executionsSuccess": successes,
                "executionsError": errors,
                "avgDurationMs": float(mean),
                "lastExecutedAt": newest,
            }
        )

    async def _flows(self) -> bytes:
        rows = await self._store.read_flows(self._ids.user, FLOWS_PAGE_SIZE)
        items = [
            {"id": row[1], "name": row[2], "description": row[3], "status": row[4], "updatedAt": row[5]} for row in rows
        ]
        return _dump(_page(items, rows[0][0] if rows else 0, FLOWS_PAGE_SIZE))

    async def _flow(self) -> bytes:
        row = await self._store.read_flow(self._ids.flow)
        names = ("id", "userId", "name", "description", "organismYaml", "status", "containerId", "errorMessage")
        members = dict(zip((*names, "createdAt", "updatedAt"), row, strict=True))
        return _dump(members | {"canvasState": None})

    async def _webhook(self, token: str, receive: Receive) -> tuple[int, bytes]:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        execution_id = str(uuid_utils.uuid7())
        slot = random.randrange(SLOTS)  # noqa: S311
        if not await self._store.accept(token, execution_id, datetime.now(UTC), body.decode(), slot):
            return 404, b"{}"
        return 200, orjson.dumps({"status": "accepted", "executionId": execution_id, "message": ACCEPTED})


def _page(items: list[dict[str, Any]], total: int, page_size: int) -> dict[str, Any]:
    return {"items": items, "total": total, "page": 1, "pageSize": page_size, "hasMore": page_size < total}


def _dump(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_UTC_Z)


def serve(port: int, database_url: str, ids: Ids) -> None:
    store: Store
    if database_url.startswith("sqlite"):
        from benchmarks.api.ceiling_sqlite import SqliteStore

        store = SqliteStore(database_url.partition(":///")[2])
    else:
        from benchmarks.api.ceiling_postgres import PostgresStore

        store = PostgresStore(database_url)
    uvicorn.run(
        Application(store, ids),
        port=port,
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        server_header=False,
        log_level="warning",
    )


if __name__ == "__main__":
    serve(int(sys.argv[1]), os.environ["DATABASE_URL"], Ids(*sys.argv[2:4]))
