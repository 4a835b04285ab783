"""Benchmarks with real processes and real databases. They print measurements; see docs/performance.md."""
