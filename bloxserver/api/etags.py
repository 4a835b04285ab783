"""Entity tags in requests and responses about flows."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Header, Response

from bloxserver.queries.flow_etags import ANY, etag_of, read_etags

IfMatch = Annotated[
    str | None,
    Header(
        description="The `ETag` of the flow that the change is based on. If the flow has changed since, it is not "
        "changed and the response is 412."
    ),
]
IfNoneMatch = Annotated[
    str | None, Header(description="An `ETag` that the client has. If the flow still has it, the response is 304.")
]


def tagged(response: Response, flow: Any) -> Any:
    """Set the `ETag` of the response, and return the flow."""
    response.headers["ETag"] = etag_of(flow)
    return flow


def is_known(flow: Any, if_none_match: str | None) -> bool:
    """Whether the client has this flow already. Weak and strong tags compare as equal (RFC 9110 section 13.1.2)."""
    if if_none_match is None:
        return False
    known = {tag.removeprefix("W/") for tag in read_etags(if_none_match)}
    return ANY in known or etag_of(flow) in known
