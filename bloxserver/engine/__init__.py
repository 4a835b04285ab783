"""Runs executions: the row is the job, a claimer takes it, a worker runs it, the pump brings its messages on."""
