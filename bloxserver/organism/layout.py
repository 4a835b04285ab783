"""Positions of the nodes of a canvas: messages flow from left to right."""

from __future__ import annotations

from collections.abc import Sequence

COLUMN_WIDTH = 320
ROW_HEIGHT = 160

Edges = Sequence[tuple[int, int]]


def positions(count: int, edges: Edges) -> list[tuple[int, int]]:
    """Return x and y of the nodes 0 to `count` - 1. Each node is in a column to the right of its predecessors.

    An edge that closes a cycle is ignored. The layout is deterministic.
    """
    columns = _columns(count, edges)
    rows = _rows(columns, edges)
    return [(column * COLUMN_WIDTH, row * ROW_HEIGHT) for column, row in zip(columns, rows, strict=True)]


def _columns(count: int, edges: Edges) -> list[int]:
    """Return the length of the longest path to each node."""
    followers: list[list[int]] = [[] for _ in range(count)]
    for source, target in edges:
        followers[source].append(target)
    columns = [0] * count
    for node in _sources_first(followers):
        for follower in followers[node]:
            columns[follower] = max(columns[follower], columns[node] + 1)
    return columns


def _sources_first(followers: list[list[int]]) -> list[int]:
    """Return the nodes in topological order. Removes the edges that close a cycle."""
    seen = [False] * len(followers)
    open_nodes: set[int] = set()
    finished: list[int] = []
    for root in range(len(followers)):
        if seen[root]:
            continue
        seen[root] = True
        stack = [(root, iter(list(followers[root])))]
        open_nodes.add(root)
        while stack:
            node, rest = stack[-1]
            for follower in rest:
                if follower in open_nodes:
                    followers[node].remove(follower)
                elif not seen[follower]:
                    seen[follower] = True
                    open_nodes.add(follower)
                    stack.append((follower, iter(list(followers[follower]))))
                    break
            else:
                stack.pop()
                open_nodes.discard(node)
                finished.append(node)
    return finished[::-1]


def _rows(columns: list[int], edges: Edges) -> list[int]:
    """Return the row of each node: near its predecessors if possible."""
    leading: list[list[int]] = [[] for _ in columns]
    for source, target in edges:
        if columns[source] < columns[target]:
            leading[target].append(source)
    members: list[list[int]] = [[] for _ in range(max(columns, default=-1) + 1)]
    for node, column in enumerate(columns):
        members[column].append(node)
    rows = [0] * len(columns)
    for nodes in members:
        wanted = {node: sum(rows[other] for other in leading[node]) / max(len(leading[node]), 1) for node in nodes}
        for row, node in enumerate(sorted(nodes, key=lambda node: (wanted[node], node))):
            rows[node] = row
    return rows
