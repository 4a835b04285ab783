"""A name server that never answers, as the resolver of the measured processes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

START = """
from functools import partial
from pathlib import Path

from bloxserver.clients import names, resolver

resolver.Names = partial(names.Names, resolv_conf=Path({path!r}), port={port})
"""
"""Python runs it at the start of each process. No setting names a name server or its port."""


@asynccontextmanager
async def silent_name_server(directory: Path) -> AsyncIterator[dict[str, str]]:
    """Run the name server. Yields the environment of processes that ask it."""
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 0))
    try:
        start = directory / "start"
        start.mkdir()
        (start / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        port = transport.get_extra_info("sockname")[1]
        (start / "sitecustomize.py").write_text(START.format(path=str(start / "resolv.conf"), port=port))
        path = [str(start), *filter(None, [os.environ.get("PYTHONPATH")])]
        yield {"PYTHONPATH": os.pathsep.join(path)}
    finally:
        transport.close()
