"""Runs executions. A row is a job: the claimer claims it, the worker runs it, and the pump delivers its messages."""
