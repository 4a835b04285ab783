"""Running executions: worker, pump, attempts, routing and context."""
