"""The flows that a definition calls, as requirements on the flow's owner."""

from __future__ import annotations

from collections.abc import Mapping

from bloxserver.blocks.flow_call import FlowCallConfig
from bloxserver.organism.limits import unconditional_peers
from bloxserver.organism.model import Organism
from bloxserver.organism.requirements import FlowRequirement
from bloxserver.organism.sections import ProblemReport


def require_called_flows(organism: Organism, report: ProblemReport) -> None:
    """Add a requirement for each call of a flow whose name contains no placeholder."""
    peers = {listener.name: list(unconditional_peers(listener)) for listener in organism.listeners}
    for number, listener in enumerate(organism.listeners):
        config = listener.config
        if not isinstance(config, FlowCallConfig) or "flow" in listener.templates:
            continue
        has_target = config.target is None or organism.has(config.target)
        repeats = has_target and listener.name in _reached(organism.entry(config.target).name, peers)
        keys = ("config", "tool_config")
        [path] = [path for key in keys if (path := ("listeners", number, key, "flow")) in report.document.values]
        place = report.document.place_of(path)
        report.requirements.append(FlowRequirement(place, path, config.flow, repeats, has_target))


def _reached(entry: str, peers: Mapping[str, list[str]]) -> set[str]:
    """Return the listeners that receive a message whenever `entry` does, unless a step fails."""
    reached, waiting = {entry}, [entry]
    while waiting:
        new = set(peers[waiting.pop()]) - reached
        reached |= new
        waiting.extend(new)
    return reached
