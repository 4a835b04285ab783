"""Verbs that change things, a module per resource. The caller's session carries the transaction; none ends it here."""
