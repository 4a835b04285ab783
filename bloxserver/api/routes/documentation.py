"""Pages that show the OpenAPI document. All that they load comes from this package (`bloxserver/api/assets`)."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse

from bloxserver.errors import NotFound

ASSETS = Path(__file__).parents[1] / "assets"
MEDIA_TYPES = {
    "docs.js": "text/javascript",
    "redoc.standalone.js": "text/javascript",
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
}
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",  # both programs create styles while they run
        "img-src 'self' data:",
        "connect-src 'self'",
        "worker-src blob:",  # the search of Redoc
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
CACHE_CONTROL = "public, max-age=3600"

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs() -> HTMLResponse:
    """Return the page of Swagger UI."""
    return _page("docs.html")


@router.get("/redoc")
async def redoc() -> HTMLResponse:
    """Return the page of Redoc."""
    return _page("redoc.html")


@router.get("/docs/assets/{name}")
async def asset(name: str) -> FileResponse:
    """Return a script or style sheet of the pages."""
    if name not in MEDIA_TYPES:
        raise NotFound("Asset")
    return FileResponse(ASSETS / name, media_type=MEDIA_TYPES[name], headers={"Cache-Control": CACHE_CONTROL})


def _page(name: str) -> HTMLResponse:
    text = (ASSETS / name).read_text(encoding="utf-8")
    return HTMLResponse(text, headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY})
