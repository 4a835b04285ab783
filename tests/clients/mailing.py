"""An email, its delivery to a server, and the error of a delivery."""

from __future__ import annotations

from datetime import UTC, datetime
from email.message import EmailMessage
from ipaddress import ip_network
from typing import Any

import pytest

from bloxserver.clients.mail import Mailer, MailError, MailServer, compose
from tests.smtp_server import SmtpServer

LOOPBACK = ip_network("127.0.0.1/32")
MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def mail(**changes: Any) -> EmailMessage:
    given: dict[str, Any] = {
        "key": "key-1",
        "to": ["ada@example.com"],
        "subject": "Hello",
        "text": "Hi",
        "sender": "me@example.org",
    }
    return compose(moment=MOMENT, **given | changes)


def plain(server: SmtpServer, host: str = "127.0.0.1", **changes: Any) -> MailServer:
    """Return the server without encryption."""
    return MailServer(host, server.port, "none", **changes)


async def failure(mailer: Mailer, message: EmailMessage | None = None, **options: Any) -> MailError:
    with pytest.raises(MailError) as caught:
        await mailer.send(message or mail(), **options)
    assert "secret" not in caught.value.message
    return caught.value
