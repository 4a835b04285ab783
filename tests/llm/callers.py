"""Callers of language models."""

from __future__ import annotations

from uuid import uuid4

from bloxserver.llm.calls import Caller
from bloxserver.plans import PLANS


def caller(tier: str = "enterprise") -> Caller:
    """A user without an execution."""
    return Caller(uuid4(), tier, PLANS[tier])
