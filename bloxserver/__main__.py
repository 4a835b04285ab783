"""`python -m bloxserver`."""

from bloxserver.cli import app

app()
