"""Runs executions: dispatcher, job queue, worker, pump. `engine.jobs` is the only module that knows DBOS."""
