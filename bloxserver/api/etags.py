"""Entity tags in requests and responses about flows."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Header, Request, Response

from bloxserver.queries.flow_etags import etag_of


async def _if_match(
    request: Request,
    value: Annotated[
        str | None,
        Header(
            alias="If-Match",
            description="The `ETag` of the flow that the change is based on. If the flow has changed since, it is not "
            "changed and the response is 412.",
        ),
    ] = None,
) -> str | None:
    """The tags of all headers of this name: they are one list (RFC 9110 section 5.3)."""
    return None if value is None else ",".join(request.headers.getlist("If-Match"))


IfMatch = Annotated[str | None, Depends(_if_match)]


def tagged(response: Response, flow: Any) -> Any:
    """Set the `ETag` of the response, and return the flow."""
    response.headers["ETag"] = etag_of(flow)
    return flow
