"""The members of an answer to a `wait.webhook` that are not fields of its form."""

from __future__ import annotations

BUTTON, RESPONDER = "button", "answered_by"
"""The value of the button that was pressed, and the name of the person who answers."""
