"""Reads, one module per resource. Each is limited to the rows of the user: other rows raise `NotFound`."""
