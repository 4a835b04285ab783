"""A simulated network that records connection attempts."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import dns.asyncresolver
import dns.resolver
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
        monkeypatch.setattr(dns.asyncresolver.Resolver, "resolve", self._resolve)
        monkeypatch.setattr(loop, "sock_connect", self._sock_connect)

    async def _resolve(self, host: str, kind: str, **options: Any) -> list[SimpleNamespace]:
        if kind == "AAAA":  # the first of the two questions of a lookup
            self.questions.append(host)
        if host not in NAMES:
            raise dns.resolver.NXDOMAIN
        answers = NAMES[host][min(self.questions.count(host), len(NAMES[host])) - 1]
        return [SimpleNamespace(address=address) for address in answers if (":" in address) == (kind == "AAAA")]

    async def _sock_connect(self, sock: socket.socket, address: tuple[str, int]) -> None:
        self.dialled.append(address[0])
        self.ports.append(address[1])
        if address[0] != "127.0.0.1":
            raise ConnectionRefusedError
        await self._connect(sock, address)
