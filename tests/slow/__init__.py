"""Tests that start processes, break things at length, or measure: `make test-slow` runs them, `make test` does not."""
