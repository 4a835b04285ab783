"""A simulated network that records connection attempts."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from tests.clients.hostile import NAMES


class Network:
    """Replace name resolution by `NAMES`, and record every address that is connected to.

    Dials of other addresses than 127.0.0.1 are recorded and refused.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self.dialled: list[str] = []
        self.ports: list[int] = []
        self.questions: list[str] = []
        self._connect = loop.sock_connect
        self._system_getaddrinfo = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._getaddrinfo)
        monkeypatch.setattr(loop, "sock_connect", self._sock_connect)

    def _getaddrinfo(self, host: str, port: int | None, **options: Any) -> list[Any]:
        if options.get("flags") == socket.AI_NUMERICHOST:
            return self._system_getaddrinfo(host, port, **options)
        self.questions.append(host)
        if host not in NAMES:
            raise socket.gaierror(socket.EAI_NONAME, "unknown name")
        answers = NAMES[host][min(self.questions.count(host), len(NAMES[host])) - 1]
        return [(socket.AF_UNSPEC, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers]

    async def _sock_connect(self, sock: socket.socket, address: tuple[str, int]) -> None:
        self.dialled.append(address[0])
        self.ports.append(address[1])
        if address[0] != "127.0.0.1":
            raise ConnectionRefusedError
        await self._connect(sock, address)
