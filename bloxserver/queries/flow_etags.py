"""Entity tags of flows, with which a client avoids overwriting the changes of another one (RFC 9110 section 8.8.3)."""

from __future__ import annotations

import json
from collections.abc import Collection
from hashlib import sha256
from typing import Any

from bloxserver.raw_json import RawJson

ANY = "*"


def etag_of(flow: Any) -> str:
    """Return the strong tag of a flow's name, description, definition and canvas. Its status does not change the tag.

    `flow` is a record or a row.
    """
    canvas = flow.canvas_state
    if canvas is not None:
        canvas = canvas.text if isinstance(canvas, RawJson) else json.dumps(canvas)
    digest = sha256()
    for text in (flow.name, flow.description, flow.organism_yaml, canvas):
        data = b"" if text is None else text.encode(errors="surrogatepass")
        digest.update(b"-" if text is None else f"{len(data)}:".encode())
        digest.update(data)
    return f'"{digest.hexdigest()[:32]}"'


def read_etags(header: str) -> frozenset[str]:
    """Return the tags in an `If-Match` header, which may be `*`. Weak tags keep their `W/`."""
    return frozenset(part.strip() for part in header.split(",") if part.strip())


def matches(flow: Any, expected: Collection[str]) -> bool:
    """Whether one of the tags is that of the flow, by the strong comparison."""
    return ANY in expected or etag_of(flow) in expected
