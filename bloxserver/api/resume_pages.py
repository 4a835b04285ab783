"""The pages on which a person answers a question of an execution. They contain no script."""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi.responses import HTMLResponse

from bloxserver.errors import BloxError, Conflict, NotFound, RateLimited, Unprocessable
from bloxserver.services.resumptions import OpenWait
from bloxserver.wait_forms import BUTTON, RESPONDER

if TYPE_CHECKING:
    from jinja2 import Template

    from bloxserver.blocks.wait_webhook import WaitWebhookConfig

TEMPLATE = Path(__file__).with_name("assets") / "resume.html"
STYLE = (
    "body{font:1rem/1.5 system-ui,sans-serif;margin:2rem auto;max-width:40rem;padding:0 1rem}"
    "label,select,input[type=text],input[type=number]{display:block;max-width:100%}"
    "input[type=checkbox]+label{display:inline}"
    ".question{white-space:pre-wrap;overflow-wrap:anywhere}"
    "button{font:inherit;margin:0 .5rem .5rem 0;padding:.4rem 1rem}"
    "strong{color:#b00020}"
)
HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            f"style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "X-Robots-Tag": "noindex, nofollow",
}
MESSAGES: dict[type[BloxError], str] = {
    NotFound: "This link is not valid, or the time to answer is over.",
    Conflict: "This question has been answered. A link can be used once.",
    RateLimited: "Too many requests. Try again in a minute.",
}


def question_page(opened: OpenWait, values: Mapping[str, str] | None = None) -> HTMLResponse:
    """The question, and a form with these values."""
    return _page("Your answer", config=opened.config, question=opened.question, values=values)


def rejected_page(opened: OpenWait, error: Unprocessable, values: Mapping[str, str]) -> HTMLResponse:
    """The form again, with the reasons why its values were rejected."""
    return _page(
        "Your answer",
        status=error.status,
        message="The answer was not accepted. Correct it and send it again.",
        config=opened.config,
        question=opened.question,
        values=values,
        reasons={name: str(reason) for name, reason in (error.details or {}).items()},
    )


def accepted_page() -> HTMLResponse:
    """The result of an accepted answer."""
    return _page("Thank you", message="Your answer was received. You can close this page.")


def error_page(error: BloxError) -> HTMLResponse:
    """An error as a page."""
    known = (message for kind, message in MESSAGES.items() if isinstance(error, kind))
    message = next(known, error.message)
    page = _page(HTTPStatus(error.status).phrase, status=error.status, message=message)
    page.headers.update(error.headers or {})
    return page


def _page(
    title: str,
    *,
    status: int = 200,
    message: str | None = None,
    config: WaitWebhookConfig | None = None,
    question: str | None = None,
    values: Mapping[str, str] | None = None,
    reasons: Mapping[str, str] | None = None,
) -> HTMLResponse:
    text = _template().render(
        title=title,
        style=STYLE,
        message=message,
        config=config,
        question=question,
        values=defaultdict(str, values or {}),
        reasons=reasons or {},
        button=BUTTON,
        responder=RESPONDER,
    )
    return HTMLResponse(text, status, headers=HEADERS)


@lru_cache
def _template() -> Template:
    import jinja2  # few servers show such a page

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
