"""Reads, a module per resource. Each starts from `flows.owned_by` or from the user: what is not his is not found."""
