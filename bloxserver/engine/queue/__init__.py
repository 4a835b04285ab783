"""The queue of executions, in database rows: selection, claims, leases, checkpoints, heartbeat, recovery."""
