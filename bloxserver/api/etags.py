"""Entity tags in requests and responses about flows."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Header, Response

from bloxserver.queries.flow_etags import etag_of

IfMatch = Annotated[
    str | None,
    Header(
        description="The `ETag` of the flow that the change is based on. If the flow has changed since, it is not "
        "changed and the response is 412."
    ),
]


def tagged(response: Response, flow: Any) -> Any:
    """Set the `ETag` of the response, and return the flow."""
    response.headers["ETag"] = etag_of(flow)
    return flow
