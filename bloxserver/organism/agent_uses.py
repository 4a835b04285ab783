"""How many messages the agents of a definition may handle in one execution, and what one message may use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from bloxserver.blocks.agent import AgentConfig
from bloxserver.organism.model import Listener, Organism


@dataclass(frozen=True, slots=True)
class AgentUse:
    """Agents whose messages may use the same: `messages` of them, of all these agents together."""

    model: str | None
    max_tokens: int | None
    max_calls: int
    """The requests to the model for one message, those that fail and are retried included."""
    max_total_tokens: int
    messages: int


def agent_uses(organism: Organism) -> list[AgentUse]:
    """Upper bounds for an execution that starts at the default entry. Called flows are not included."""
    limit = organism.execution.max_iterations
    numbers: Counter[tuple[str | None, int | None, int, int]] = Counter()
    for name, number in _messages(organism, limit).items():
        listener = organism.listener(name)
        config = listener.config
        if isinstance(config, AgentConfig):
            max_calls = config.max_calls + listener.retries
            numbers[config.model, config.max_tokens, max_calls, config.max_total_tokens] += number
    return [AgentUse(*key, messages=min(number, limit)) for key, number in numbers.items()]


def _messages(organism: Organism, limit: int) -> dict[str, int]:
    """The listeners that an execution reaches, and the messages that each of them may get, at most `limit`."""
    entry = organism.entry().name
    reached, called = _reachable(organism, entry)
    waiting = Counter(to for name in reached for to in _peers(organism.listener(name)))
    numbers = dict.fromkeys(reached, 0) | {entry: 1}
    free = [entry] if not waiting[entry] else []
    ordered: set[str] = set()
    while free:
        ordered.add(name := free.pop())
        for to in _peers(organism.listener(name)):
            numbers[to] = min(limit, numbers[to] + numbers[name])
            waiting[to] -= 1
            if not waiting[to]:
                free.append(to)
    # What is not ordered is in a cycle, or behind one. A model can call a tool any number of times.
    return {name: limit if name in called or name not in ordered else numbers[name] for name in {*reached, *called}}


def _reachable(organism: Organism, entry: str) -> tuple[set[str], set[str]]:
    """The listeners that get messages from their peers, and those that agents call as tools."""
    reached, called = {entry}, set[str]()
    waiting = [(entry, True)]
    while waiting:
        name, sends = waiting.pop()
        listener = organism.listener(name)
        # The answer to a call goes to the agent, and not to the peers of the tool.
        found = [(to, True, reached) for to in _peers(listener) if sends]
        found += [(tool.listener, False, called) for tool in listener.tools]
        for to, is_message, known in found:
            if to not in known:
                known.add(to)
                waiting.append((to, is_message))
    return reached, called


def _peers(listener: Listener) -> Iterator[str]:
    """The listeners that may get the answer or the error."""
    return (peer.to for peer in listener.peers)
