"""Attacks with many connections, and with many cheap requests."""

from __future__ import annotations

import asyncio

from benchmarks.neighbours.attacker import ADDRESS, Attacker
from benchmarks.neighbours.cases.case import Attack, Case, fan_out, requests, webhooks
from benchmarks.neighbours.connections import Client, read_answer

UNKNOWN_KEY = "eyJhbGciOiJSUzI1NiIsImtpZCI6InVua25vd24iLCJ0eXAiOiJKV1QifQ.e30." + "A" * 342
"""A token whose header names a key that Clerk does not have."""
SLOW = fan_out(1, "delay", {"seconds": 3600})


def _connections(count: int, start: bytes, *, drip: bytes = b"") -> Attack:
    """Open connections and send the start of a request on each; then a little more each second."""

    async def attack(attacker: Attacker) -> None:
        async def one() -> None:
            reader, writer = await attacker.anonymous.connect()
            try:
                writer.write(start.replace(b"WEBHOOK", attacker.webhook.encode()))
                await writer.drain()
                while not reader.at_eof():
                    writer.write(drip)
                    await writer.drain()
                    try:
                        async with asyncio.timeout(1):
                            answer = await read_answer(reader)
                        attacker.outcomes[answer.outcome] += 1
                    except TimeoutError:
                        pass
                attacker.outcomes["connection closed"] += 1
            finally:
                writer.transport.abort()
            await asyncio.sleep(0.5)

        await attacker.repeat(one, count, 0.5)

    return attack


def _waiting(count: int, path: str, method: str = "GET") -> Attack:
    """Keep requests open that the server answers late."""

    async def attack(attacker: Attacker) -> None:
        target = path.replace("WEBHOOK", attacker.webhook).replace("FLOW", attacker.flow)
        if "EXECUTION" in target:
            answer = await attacker.trigger(b"{}")
            target = target.replace("EXECUTION", answer.json()["executionId"])

        async def one() -> None:
            answer = await attacker.send(method, target, discard=True)
            if answer.status >= 400:
                await asyncio.sleep(0.2)

        await attacker.repeat(one, count)

    return attack


async def _reconnecting(attacker: Attacker) -> None:
    """Open event streams and close them at once."""
    execution = (await attacker.trigger(b"{}")).json()["executionId"]
    head = attacker.client.head("GET", f"{attacker.flow}/executions/{execution}/events")

    async def one() -> None:
        reader, writer = await attacker.client.connect()
        try:
            writer.write(head)
            attacker.outcomes[(await reader.readuntil(b"\r\n")).decode().strip()] += 1
        finally:
            writer.transport.abort()

    await attacker.repeat(one, 50)


async def _pipelining(attacker: Attacker) -> None:
    """Send requests on one connection without reading the responses."""
    head = attacker.client.head("GET", f"{attacker.flow}") * 1_000

    async def one() -> None:
        reader, writer = await attacker.client.connect()
        try:
            for _ in range(20):
                writer.write(head)
                await writer.drain()
            attacker.outcomes["1,000 requests sent"] += 1
            attacker.outcomes[(await read_answer(reader)).outcome] += 1
        finally:
            writer.transport.abort()

    await attacker.repeat(one, 8)


async def _tokens(attacker: Attacker) -> None:
    """Guess webhook tokens and sign in with tokens whose key is unknown."""
    url = f"http://{attacker.client.host}:{attacker.client.port}"
    bad = Client(url, UNKNOWN_KEY, source=ADDRESS, keep=True)
    number = 0

    async def one() -> None:
        nonlocal number
        number += 1
        await attacker.send("POST", f"/webhooks/guess-{number}", b"{}")
        attacker.outcomes[(await bad.request("GET", "/api/v1/flows")).outcome] += 1

    await attacker.repeat(one)


BODY = b"POST WEBHOOK HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
CHUNKED = b"POST WEBHOOK HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"

CASES = [
    Case("control", "", "an honest user: GET of flows, 4 at a time", requests("GET", "/api/v1/flows")),
    Case("none", "", "no attack", requests("GET", "/health/live", concurrency=0)),
    Case("event-streams", "H7", "1,500 event streams", _waiting(1_500, "FLOW/executions/EXECUTION/events"), SLOW),
    Case("waits", "H7", "1,500 webhooks with ?wait=60", _waiting(1_500, "WEBHOOK?wait=60", "POST"), SLOW),
    Case(
        "half-requests", "M1", "2,000 connections that send half a head", _connections(2_000, b"GET / HTTP/1.1\r\nHo")
    ),
    Case(
        "dripping-heads",
        "new",
        "10,000 connections that send a header each second",
        _connections(10_000, b"GET / HTTP/1.1\r\n", drip=b"x: y\r\n"),
    ),
    Case("dripping-bodies", "new", "500 bodies that never end", _connections(500, BODY, drip=b"a")),
    Case("small-chunks", "new", "bodies in chunks of one byte", _connections(50, CHUNKED, drip=b"1\r\na\r\n" * 40_000)),
    Case(
        "huge-headers",
        "new",
        "headers that never end",
        _connections(50, b"GET / HTTP/1.1\r\n", drip=b"x: y\r\n" * 10_000),
    ),
    Case("small-webhooks", "new", "webhooks with small inputs", webhooks(b"{}", 16)),
    Case("large-webhooks", "new", "webhooks with 1 MB of text", webhooks(b"a" * 1_000_000, 16)),
    Case("reconnecting", "new", "event streams that are opened and closed", _reconnecting, SLOW),
    Case("pipelining", "new", "requests without reading the responses", _pipelining),
    Case("tokens", "M2", "guessed webhook tokens, and sign-ins with an unknown key", _tokens, rate_limits=True),
]
