"""The peers of a listener: its outgoing edges."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import JsonValue

from bloxserver.blocks.cel.type_check import Members, check_condition
from bloxserver.blocks.expressions import compile_expression
from bloxserver.blocks.names import CONDITION_NAMES
from bloxserver.organism.model import Peer
from bloxserver.organism.problems import Path, quoted
from bloxserver.organism.sections import Section, nearest_of
from bloxserver.organism.yaml_source import Place

PEER_KEYS = ("to", "when", "on")
MEMBERS: dict[str, Members] = {
    "answer": {},
    "error": {"error": frozenset({"listener", "code", "message", "attempt"})},
}


def read_peers(
    section: Section, names: dict[str, Place], *, is_agent: bool, targets: Sequence[tuple[str, Path]]
) -> tuple[tuple[Peer, ...], tuple[str, ...]]:
    """Return the peers of a listener and, for an agent, the names of the peers that it can call."""
    reader = _PeerReader(section, names, is_agent)
    for index, item in enumerate(section.items("peers", "write [name]")):
        reader.read(item, (*section.path_to("peers"), index))
    for name, path in targets:
        reader.add_target(name, path)
    return tuple(reader.peers), tuple(reader.tools)


class _PeerReader:
    def __init__(self, section: Section, names: dict[str, Place], is_agent: bool) -> None:
        self._section = section
        self._report = section.report
        self._names = names
        self._nearest = nearest_of(names)
        self._is_agent = is_agent
        self.peers: list[Peer] = []
        self.tools: list[str] = []

    def read(self, item: JsonValue, path: Path) -> None:
        if isinstance(item, str):
            if self._is_known(item, path):
                self._add(Peer(item), path, is_tool=self._is_agent)
        elif isinstance(item, dict):
            self._read_mapping(Section(item, path, self._report))
        else:
            hint = "write a name, or {to: name, when: condition}"
            self._report.error(path, "wrong_type", "a peer must be the name of a listener or a mapping", hint)

    def add_target(self, name: str, path: Path) -> None:
        """Add a listener that the block's config names."""
        taken = any((peer.to, peer.on) == (name, "answer") for peer in self.peers)
        if self._is_known(name, path) and not taken:
            self.peers.append(Peer(name))

    def _read_mapping(self, item: Section) -> None:
        for key in item.values:
            if key not in PEER_KEYS:
                hint = item.report.suggest(key, nearest_of(PEER_KEYS), f"the keys are {', '.join(PEER_KEYS)}")
                item.report.error(
                    item.path_to(key), "unknown_key", f"{quoted(key)} is not a key of a peer", hint, at_key=True
                )
        before = len(self._report.problems)
        to, on, when = item.text("to", required=True), item.text("on"), item.text("when")
        if on is not None and on not in CONDITION_NAMES:
            hint = "remove it for the answer, or write on: error"
            item.report.error(item.path_to("on"), "wrong_type", f'"on" cannot be {quoted(on)}', hint)
            on = None
            self._check_condition(item, when, "error")
        else:
            self._check_condition(item, when, on or "answer")
            if self._is_agent and item.values.get("on") is None and when is not None:
                hint = "add on: answer if the peer is to receive the agent's answer"
                message = "a peer that an agent can call as a tool cannot have a condition"
                item.report.error(item.path_to("when"), "unsupported", message, hint, at_key=True)
        if to is None or not self._is_known(to, item.path_to("to")) or len(self._report.problems) > before:
            return
        peer = Peer(to, "error" if on == "error" else "answer", when)
        self._add(peer, item.path_to("to"), is_tool=self._is_agent and on is None)

    def _check_condition(self, item: Section, when: str | None, on: str) -> None:
        if when is None:
            return
        try:
            check_condition(compile_expression(when, CONDITION_NAMES[on]).program, MEMBERS[on])
        except ValueError as error:
            hint = "write a CEL expression over payload, like payload.score > 3"
            item.report.error(item.path_to("when"), "invalid_expression", str(error), hint)

    def _is_known(self, name: str, path: Path) -> bool:
        if name in self._names:
            return True
        hint = self._report.suggest(name, self._nearest, f"add a listener with the name {quoted(name)}, or remove this")
        self._report.error(path, "unknown_peer", f"unknown peer {quoted(name)}", hint)
        return False

    def _add(self, peer: Peer, path: Path, *, is_tool: bool) -> None:
        taken = peer.to in self.tools if is_tool else any((peer.to, peer.on) == (p.to, p.on) for p in self.peers)
        if taken:
            hint = "keep one of them; combine two conditions with ||"
            self._report.error(path, "duplicate_peer", f"the peer {quoted(peer.to)} is given twice", hint)
        elif is_tool:
            self.tools.append(peer.to)
        else:
            self.peers.append(peer)
