"""Background work: reconciliation, schedules, notifications, retention and deletions."""
