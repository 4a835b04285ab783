"""What a case consists of."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from benchmarks.neighbours.attacker import Attacker

Attack = Callable[[Attacker], Awaitable[None]]

ECHO = "organism: {name: attack}\nlisteners: [{name: a, description: d, handler: echo}]\n"


@dataclass(frozen=True)
class Case:
    name: str
    finding: str
    """The finding that it repeats, or "new"."""
    description: str
    attack: Attack
    organism: str = ECHO
    """The attacker's definition. `URL` is replaced by the URL of the server that the attacker controls."""
    executions: int = 0
    """The number of executions that the attacker's flow has before the attack."""
    steps: int = 0
    """The number of steps of each of them."""
    rate_limits: bool = False
    """Whether the rates of requests are limited. Elsewhere they are not, since they would hide other weaknesses."""
    silent_names: bool = False
    """Whether the name server of the measured processes never answers."""


def listener(handler: str, config: object = None, *, name: str = "a", peers: list[object] | None = None) -> str:
    """Return a listener in YAML."""
    members: dict[str, object] = {"name": name, "description": "d", "handler": handler}
    if config is not None:
        members["config"] = config
    if peers:
        members["peers"] = peers
    return json.dumps(members)


def organism(*listeners: str, iterations: int = 10_000, timeout: int = 300) -> str:
    """Return a definition with these listeners."""
    limits = f"execution: {{max_iterations: {iterations}, timeout_seconds: {timeout}}}\n"
    return "organism: {name: attack}\nlisteners:\n" + "".join(f"- {item}\n" for item in listeners) + limits


def fan_out(count: int, handler: str, config: object = None) -> str:
    """Return a definition whose first listener sends its message to `count` others."""
    names = [f"b{number}" for number in range(count)]
    others = [listener(handler, config, name=name) for name in names]
    return organism(listener("echo", peers=list(names)), *others)


def expression(text: str) -> str:
    """Return a definition with one `transform`."""
    return organism(listener("transform", {"expression": text}))


def webhooks(body: bytes, concurrency: int = 4, pause: float = 0) -> Attack:
    """Send the same input to the webhook again and again."""

    async def attack(attacker: Attacker) -> None:
        await attacker.repeat(lambda: attacker.trigger(body), concurrency, pause)

    return attack


def requests(
    method: str, path: str, body: object = None, concurrency: int = 4, content_type: str = "application/json"
) -> Attack:
    """Send the same request again and again. `FLOW` in the path is the attacker's flow."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()

    async def attack(attacker: Attacker) -> None:
        target = path.replace("FLOW", attacker.flow)
        await attacker.repeat(
            lambda: attacker.send(method, target, data, content_type=content_type, discard=True), concurrency
        )

    return attack
