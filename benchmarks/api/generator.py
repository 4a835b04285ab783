"""Sends requests over keep-alive connections and measures each response.

`python -m benchmarks.api.generator` reads a `Load` as JSON from its standard input and writes a `Measured` as JSON. It
is a process of its own, so that it can run on another core than the server.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import cast

WARM_UP_SECONDS = 0.3
"""Answers in this time are not counted."""
ANSWER_SECONDS = 60
"""How long the generator waits for the answers to the last requests."""
LOOPBACK = "127.0.0.1"
MAX_ADDRESSES = 250


@dataclass
class Load:
    port: int
    connections: int
    seconds: float
    """How long requests are sent, after the warm-up."""
    requests: list[str]
    """Complete requests. Each connection sends them in turn."""
    addresses: int = 1
    """The connections are distributed over this number of client addresses, 127.0.0.1 and the following ones."""
    maximum: int | None = None
    """Stop after this number of requests, warm-up included."""


@dataclass
class Measured:
    requests: int
    """Answers with 200 after the warm-up."""
    seconds: float
    """From the end of the warm-up until the last of these answers."""
    p50_ms: float
    """Of requests that began after the warm-up. Each connection sends at least one."""
    p99_ms: float
    answered: int
    """All answers, warm-up included."""
    unanswered: int
    statuses: dict[str, int] = field(default_factory=dict)
    body: str = ""
    """The last response with a status other than 200."""

    @property
    def rate(self) -> float:
        return self.requests / self.seconds

    @property
    def failures(self) -> dict[str, int]:
        """The other statuses than 200."""
        return {status: count for status, count in self.statuses.items() if status != "200"}


class Generator:
    """The state that all connections share."""

    def __init__(self, load: Load, warm_up_seconds: float = WARM_UP_SECONDS) -> None:
        self.load = load
        self._warm_up_seconds = warm_up_seconds
        self.requests = [request.encode() for request in load.requests]
        self.latencies: list[float] = []
        self.completed = 0
        self.statuses: Counter[str] = Counter()
        self.body = ""
        self.remaining = math.inf if load.maximum is None else load.maximum
        self.answered = 0
        self.unanswered = 0
        self.measured_from = self.ends_at = self.last_answer_at = 0.0

    async def run(self) -> Measured:
        loop = asyncio.get_running_loop()
        self.measured_from = time.perf_counter() + self._warm_up_seconds
        self.ends_at = self.measured_from + self.load.seconds
        connections = [Connection(self, number) for number in range(self.load.connections)]
        for number, connection in enumerate(connections):
            source = f"127.0.0.{1 + number % min(self.load.addresses, MAX_ADDRESSES)}"
            await loop.create_connection(lambda: connection, LOOPBACK, self.load.port, local_addr=(source, 0))  # noqa: B023
        _, open_still = await asyncio.wait(
            [asyncio.ensure_future(connection.ended) for connection in connections],
            timeout=self._warm_up_seconds + self.load.seconds + ANSWER_SECONDS,
        )
        self.unanswered += len(open_still)
        ordered = sorted(self.latencies)
        return Measured(
            requests=self.completed,
            seconds=max(self.last_answer_at - self.measured_from, 1e-9),
            p50_ms=_rank(ordered, 0.5),
            p99_ms=_rank(ordered, 0.99),
            answered=self.answered,
            unanswered=self.unanswered,
            statuses=dict(self.statuses),
            body=self.body,
        )


class Connection(asyncio.Protocol):
    """Sends the next request when the response to the last one is complete."""

    def __init__(self, generator: Generator, number: int) -> None:
        self._generator = generator
        self._next = number
        self._received = b""
        self._length = 0
        """Bytes of the response that is being received; 0 until its head is complete."""
        self._began_at = math.inf
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop has its own class
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self._generator.unanswered += 1
            self.ended.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._received = self._received + data if self._received else data
        if not self._length:
            head = self._received.find(b"\r\n\r\n")
            if head < 0:
                return
            self._length = head + 4 + _content_length(self._received[:head])
        if len(self._received) >= self._length:
            self._answered()

    def _send(self) -> None:
        generator = self._generator
        moment = time.perf_counter()
        is_measured = generator.measured_from <= self._began_at < math.inf
        if (moment >= generator.ends_at and is_measured) or not generator.remaining:
            self.ended.set_result(None)
            self._transport.close()
            return
        generator.remaining -= 1
        self._began_at = moment
        self._transport.write(generator.requests[self._next % len(generator.requests)])
        self._next += 1

    def _answered(self) -> None:
        generator, moment = self._generator, time.perf_counter()
        status = self._received[9:12].decode()
        generator.answered += 1
        generator.statuses[status] += 1
        if status != "200":
            generator.body = self._received.decode(errors="replace")[:2000]
        elif moment >= generator.measured_from:
            generator.completed += 1
            generator.last_answer_at = moment
            if self._began_at >= generator.measured_from:
                generator.latencies.append(moment - self._began_at)
        self._received, self._length = b"", 0
        self._send()


def _content_length(head: bytes) -> int:
    begin = head.find(b"content-length:")
    if begin < 0:
        begin = head.lower().find(b"content-length:")
    if begin < 0:
        raise ValueError(f"a response without Content-Length: {head!r}")
    return int(head[begin + len(b"content-length:") :].split(b"\r\n", 1)[0])


def _rank(ordered: list[float], share: float) -> float:
    """Return the percentile in milliseconds; 0 without values."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] * 1000 if ordered else 0.0


def main() -> None:
    import uvloop

    load = Load(**json.loads(sys.stdin.read()))

    async def run() -> Measured:
        return await Generator(load).run()

    sys.stdout.write(json.dumps(asdict(uvloop.run(run()))))


if __name__ == "__main__":
    main()
