"""A DNS server on 127.0.0.1, over UDP and TCP, with scripted answers."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from bloxserver.clients.names import Names
from tests.listening import listening

Records = dict[str, dict[str, list[str]]]


@dataclass
class DnsServer:
    """Answers for the names in `records`, by type, and for no other. Queries for names in `silent` get no response."""

    records: Records = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    port: int = 0
    questions: list[tuple[str, str]] = field(default_factory=list)
    """The names and types that were asked for."""
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by each question."""

    def response(self, wire: bytes, max_size: int) -> bytes | None:
        query = dns.message.from_wire(wire)
        [question] = query.question
        name, kind = question.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(question.rdtype)
        self.questions.append((name, kind))
        self.asked.set()
        if name in self.silent:
            return None
        response = dns.message.make_response(query)
        if not self._answer(response, name, kind):
            response.set_rcode(dns.rcode.NXDOMAIN)
        try:
            return response.to_wire(max_size=max_size)
        except dns.exception.TooBig:
            response.answer.clear()
            response.flags |= dns.flags.TC
            return response.to_wire()

    def _answer(self, response: dns.message.Message, name: str, kind: str) -> bool:
        """Add the records, following aliases. Returns whether the name exists."""
        records = self.records.get(name)
        for each in ("CNAME", kind):
            if texts := (records or {}).get(each):
                response.answer.append(dns.rrset.from_text(f"{name}.", 60, "IN", each, *texts))
        for alias in (records or {}).get("CNAME", []):
            self._answer(response, alias.rstrip("."), kind)
        return records is not None

    def names(self, directory: Path, *, resolv_conf: str = "", hosts: str = "") -> Names:
        """Return names that are looked up in this server and in a hosts file."""
        (directory / "resolv.conf").write_text(f"nameserver 127.0.0.1\n{resolv_conf}\n")
        (directory / "hosts").write_text(hosts)
        return Names(directory / "hosts", directory / "resolv.conf", port=self.port)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        response = self._server.response(data, 512)
        if response is not None:
            self._transport.sendto(response, addr)


@asynccontextmanager
async def running_dns_server() -> AsyncIterator[DnsServer]:
    server = DnsServer()

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(2), "big")
        response = server.response(await reader.readexactly(size), 65_535)
        if response is not None:
            writer.write(len(response).to_bytes(2, "big") + response)
            await writer.drain()

    async with listening(serve) as server.port:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Datagrams(server), ("127.0.0.1", server.port)
        )
        try:
            yield server
        finally:
            transport.close()
