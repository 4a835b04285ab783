"""Which listeners come before others, and what is known of their messages and answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import cache, cached_property

from bloxserver.blocks.shapes import ANYTHING, Shape, either, object_shape
from bloxserver.organism.join_plan import ALL, repeated_listeners
from bloxserver.organism.model import Listener, Organism, Peer

ERROR_MESSAGE = object_shape("input", error=object_shape("listener", "code", "message", "attempt"))
"""What the peers of an error receive."""
MAX_DEPTH = 50
"""How far back the message of a listener is followed."""


class FlowGraph:
    """The listeners of an organism with their peers, as an execution that starts at its entry runs them."""

    def __init__(self, organism: Organism) -> None:
        self._organism = organism
        self._entry = organism.entry().name
        self._senders: dict[str, list[tuple[Listener, Peer]]] = defaultdict(list)
        for listener in organism.listeners:
            for peer in listener.peers:
                self._senders[peer.to].append((listener, peer))
        self._messages: dict[str, Shape] = {}
        self._depth = 0
        self._reached_without = cache(lambda name: self._reached([self._entry], silent=name))
        self._reached_from = cache(self._find_reached_from)

    @cached_property
    def _tools(self) -> frozenset[str]:
        return frozenset(tool.listener for listener in self._organism.listeners for tool in listener.tools)

    @cached_property
    def _repeated(self) -> frozenset[str]:
        return repeated_listeners(self._organism.listeners)

    def message_shape(self, name: str) -> Shape:
        """Return what is known of the messages of a listener: nothing of the input and of the calls of agents."""
        if name == self._entry or name in self._tools or not self._senders[name]:
            return ANYTHING
        if name not in self._messages:
            self._messages[name] = ANYTHING  # for cycles
            if self._depth < MAX_DEPTH:
                self._depth += 1
                self._messages[name] = self._joined(name) if self._is_joined(name) else self._sent_to(name)
                self._depth -= 1
        return self._messages[name]

    def _is_joined(self, name: str) -> bool:
        return self._organism.listener(name).join == ALL

    def _joined(self, name: str) -> Shape:
        """Return an object by sender. The member of one that may answer several times can be a list."""
        senders = dict.fromkeys(sender.name for sender, _ in self._senders[name])
        return Shape({each: ANYTHING if each in self._repeated else self._sent_to(name, each) for each in senders})

    def _sent_to(self, name: str, only: str | None = None) -> Shape:
        """Return what all listeners, or only one, send to a listener."""
        sent = [(sender, peer) for sender, peer in self._senders[name] if only in (None, sender.name)]
        return either([self._sent(sender, peer) for sender, peer in sent])

    def answer_shape(self, name: str) -> Shape:
        """Return what is known of the answers of a listener."""
        listener = self._organism.listener(name)
        if listener.for_each is not None:
            return ANYTHING  # a list
        return listener.block.answer_shape(listener.config, self.message_shape(name))

    def _sent(self, sender: Listener, peer: Peer) -> Shape:
        return ERROR_MESSAGE if peer.on == "error" else self.answer_shape(sender.name)

    def precedes(self, name: str, other: str) -> bool:
        """Return whether an answer of a listener can lead to a message of another one."""
        return name in self._tools or other in self._reached_from(name)

    def always_precedes(self, name: str, other: str) -> bool:
        """Return whether every way from the entry to a listener contains an answer of another one."""
        return other not in self._reached_without(name)

    def _find_reached_from(self, name: str) -> frozenset[str]:
        peers = self._organism.listener(name).peers
        return self._reached([peer.to for peer in peers if peer.on == "answer"])

    def _reached(self, starts: Iterable[str], silent: str | None = None) -> frozenset[str]:
        """Return the listeners that are reached from others, if one of them never answers."""
        reached: set[str] = set()
        pending = [*starts]
        while pending:
            name = pending.pop()
            if name in reached or not self._organism.has(name):
                continue
            reached.add(name)
            listener = self._organism.listener(name)
            pending += [peer.to for peer in listener.peers if name != silent or peer.on == "error"]
            pending += [tool.listener for tool in listener.tools]
        return frozenset(reached)
