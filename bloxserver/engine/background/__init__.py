"""Background work: reconciliation, schedules, notifications and retention."""
