"""The queue on rows: selection, claims, leases, checkpoints, heartbeat, recovery."""
