from __future__ import annotations

from typing import Literal

from bloxserver.json_models import CamelModel


class AnswerAccepted(CamelModel):
    """The response to the call that resumes an execution."""

    status: Literal["accepted"]
