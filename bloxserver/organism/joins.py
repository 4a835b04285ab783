"""The key `join` of listeners, and the joins that can never have their message."""

from __future__ import annotations

from collections import deque

from bloxserver.organism.join_plan import ALL, MODES, JoinPlan, repeated_listeners
from bloxserver.organism.limits import cycles, shown, unconditional_peers
from bloxserver.organism.model import Listener, Organism
from bloxserver.organism.problems import quoted
from bloxserver.organism.sections import ProblemReport, Section


def read_join(section: Section) -> str | None:
    """Return the value of `join`, and report another one."""
    join = section.text("join")
    if join is None or join in MODES:
        return join
    hint = "write join: all, join: any, or remove it to handle each message on its own"
    section.report.error(section.path_to("join"), "wrong_type", f'"join" cannot be {quoted(join)}', hint)
    return None


def check_joins(organism: Organism, report: ProblemReport) -> None:
    """Report joins in a cycle, of tools, without several messages to join, and behind a cycle that never ends."""
    if organism.joins is None:
        return
    graph = _Graph(organism, organism.joins)
    for number, listener in enumerate(organism.listeners):
        if listener.join is not None:
            _check_join(listener, ("listeners", number, "join"), graph, report)


def _check_join(listener: Listener, path: tuple[str | int, ...], graph: _Graph, report: ProblemReport) -> None:
    name = listener.name
    if name in graph.tools:
        message = f"{quoted(name)} is a tool of {quoted(graph.tools[name])}, and a tool cannot have a join"
        hint = "a call is one message; remove join, or let the agent call another listener"
        report.error(path, "unsupported", message, hint, at_key=True)
    elif cycle := graph.cycle_of(name):
        message = f"the join {quoted(name)} is in the cycle {shown(cycle)}, and would wait for its own answer"
        hint = "join in a listener outside of the cycle, or remove join"
        report.error(path, "join_in_cycle", message, hint, at_key=True)
    elif listener.join == ALL and (endless := graph.endless_cycle_before(name)):
        message = f"the join {quoted(name)} never has a message: the cycle {shown(endless)} before it never ends"
        hint = "add a condition to one of the peers of the cycle: {to: name, when: condition}"
        report.error(path, "endless_join", message, hint, at_key=True)
    elif not graph.can_have_several(name):
        senders = graph.senders[name]
        reason = f"only {quoted(senders[0])} sends to it, once" if senders else "no listener sends to it"
        message = f'"join" has no effect: {reason}'
        hint = "add this listener to the peers of all listeners that it is to wait for, or remove join"
        report.warning(path, "unused_key", message, hint)


class _Graph:
    """The edges between listeners. Calls of tools are no edges: their answers go to the agent."""

    def __init__(self, organism: Organism, plan: JoinPlan) -> None:
        self._plan = plan
        self._edges = {
            listener.name: list(dict.fromkeys(peer.to for peer in listener.peers)) for listener in organism.listeners
        }
        self.senders: dict[str, list[str]] = {name: [] for name in self._edges}
        for name, peers in self._edges.items():
            for peer in peers:
                self.senders[peer].append(name)
        self.tools = {tool.listener: each.name for each in organism.listeners for tool in each.tools}
        always = {
            each.name: [] if _has_error_peer(each) else [*unconditional_peers(each)] for each in organism.listeners
        }
        self._endless = [*cycles(always)]
        self._repeated = repeated_listeners(organism.listeners)

    def cycle_of(self, name: str) -> list[str]:
        """Return the shortest cycle through a join, beginning with it; empty if there is none."""
        join = self._plan.joins[name]
        if not join.upstream & join.bit:
            return []
        before: dict[str, str] = {}
        waiting = deque([name])
        while name not in before:
            current = waiting.popleft()
            for peer in self._edges[current]:
                if peer not in before:
                    before[peer] = current
                    waiting.append(peer)
        path = [before[name]]
        while path[-1] != name:
            path.append(before[path[-1]])
        return path[::-1]

    def endless_cycle_before(self, name: str) -> list[str]:
        """Return a cycle before a join that sends messages without an end; empty if there is none."""
        upstream = self._plan.joins[name].upstream
        return next((cycle for cycle in self._endless if upstream & self._plan.bits[cycle[0]]), [])

    def can_have_several(self, name: str) -> bool:
        """Whether a listener can get several messages."""
        senders = self.senders[name]
        return len(senders) > 1 or not self._repeated.isdisjoint(senders)


def _has_error_peer(listener: Listener) -> bool:
    return any(peer.on == "error" for peer in listener.peers)
