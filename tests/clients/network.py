"""The network as a test has it, and a record of what was dialled."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from tests.clients.hostile import NAMES


class Network:
    """The network as the event loop sees it: names from `NAMES`, and a record of every address dialled.

    Dials of other addresses than 127.0.0.1 are recorded and refused.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self.dialled: list[str] = []
        self.ports: list[int] = []
        self.questions: list[str] = []
        self._connect = loop.sock_connect
        monkeypatch.setattr(loop, "getaddrinfo", self._getaddrinfo)
        monkeypatch.setattr(loop, "sock_connect", self._sock_connect)

    async def _getaddrinfo(self, host: str, port: int, **options: Any) -> list[Any]:
        self.questions.append(host)
        if host in NAMES:
            answers = NAMES[host][min(self.questions.count(host), len(NAMES[host])) - 1]
            return [(socket.AF_UNSPEC, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers]
        # Other spellings of addresses are read as the system reads them; no question leaves the machine.
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)

    async def _sock_connect(self, sock: socket.socket, address: tuple[str, int]) -> None:
        self.dialled.append(address[0])
        self.ports.append(address[1])
        if address[0] != "127.0.0.1":
            raise ConnectionRefusedError
        await self._connect(sock, address)
