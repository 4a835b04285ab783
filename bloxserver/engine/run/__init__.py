"""Running an execution: worker, pump, attempts, routing and context."""
