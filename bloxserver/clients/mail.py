"""Sends mail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from bloxserver.clients.addresses import Network


@dataclass(frozen=True)
class MailServer:
    """Where mail is handed in, and as whom."""

    host: str
    port: int
    security: Literal["starttls", "tls", "none"] = "starttls"
    username: str | None = None
    password: str | None = field(default=None, repr=False)


class Mailer:
    """Hands mail in at the installation's server, or at one that a flow names."""

    def __init__(self, default: MailServer | None, sender: str | None, allow: Sequence[Network] = ()) -> None:
        self.default = default
        self.sender = sender
        self._allow = tuple(allow)
