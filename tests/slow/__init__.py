"""Slow tests: processes, fault injection and benchmarks. `make test-slow` runs them; `make test` does not."""
