"""What expressions can read of the request that called a webhook: method, headers and query, without credentials."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl

CREDENTIAL = re.compile(
    r"authori[sz]ation|cookie|token|secret|password|signature|credential|(?:api|access|auth)[-_]?key"
)
"""Headers and parameters that contain this are left out."""
MAX_CHARACTERS = 8 * 1024
"""The names and values together. Those that exceed it are left out."""
MAX_PARAMETERS = 100


def request_facts(method: str, headers: Mapping[str, str], query: str) -> dict[str, Any]:
    """The facts as a JSON object. The names of headers are in lower case. A repeated parameter is a list."""
    left = MAX_CHARACTERS
    kept: dict[str, str] = {}
    for name, value in headers.items():
        if not CREDENTIAL.search(name) and len(name) + len(value) <= left:
            left -= len(name) + len(value)
            kept[name] = value
    facts: dict[str, Any] = {"method": method, "headers": kept, "contentType": headers.get("content-type")}
    return facts | {"query": _parameters(parse_qsl(query, keep_blank_values=True)[:MAX_PARAMETERS], left)}


def _parameters(pairs: Iterable[tuple[str, str]], left: int) -> dict[str, str | list[str]]:
    found: dict[str, str | list[str]] = {}
    for name, value in pairs:
        left -= len(name) + len(value)
        if left < 0 or CREDENTIAL.search(name.lower()):
            continue
        known = found.get(name)
        if known is None:
            found[name] = value
        elif isinstance(known, list):
            known.append(value)
        else:
            found[name] = [known, value]
    return found
