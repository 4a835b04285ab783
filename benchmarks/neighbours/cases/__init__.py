"""The attacks."""

from __future__ import annotations

from benchmarks.neighbours.cases import connecting, documents, expressions, outgoing, storage

CASES = {case.name: case for module in (connecting, expressions, documents, outgoing, storage) for case in module.CASES}
