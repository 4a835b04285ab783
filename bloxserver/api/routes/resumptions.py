from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import HTMLResponse
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api import resume_pages
from bloxserver.api.addresses import client_address
from bloxserver.api.dependencies import DbSession, RequestAdmission
from bloxserver.api.errors import error_response
from bloxserver.api.openapi import Responses, any_body, error_of, errors, response_of
from bloxserver.api.schemas import AnswerAccepted
from bloxserver.errors import BloxError, Unprocessable
from bloxserver.models.connection_pool import current_tenant
from bloxserver.services.rate_limits import Admission
from bloxserver.services.resumptions import FORM, Client, accept_answer, open_wait, read_answer
from bloxserver.settings import get_settings

ResumeToken = Annotated[str, Path(description="The signed token in the URL `resume.NAME.url`.")]


async def refuse_exceeded(resume_token: ResumeToken, admission: RequestAdmission) -> None:
    """Raise `RateLimited` before the body is read, if the URL has exceeded its limit."""
    current_tenant.set(resume_token)
    admission.refuse_exceeded("webhook", resume_token)


router = APIRouter(prefix="/resume", tags=["webhooks"], dependencies=[Depends(refuse_exceeded)])

ANSWERED = error_of(409, "The question has been answered.", "already_answered", "This question has been answered")
NOT_FOUND = error_of(
    404, "The token is invalid, or the wait is over without an answer.", "wait_not_found", "Wait not found"
)


async def received_body(request: Request) -> bytes:
    """The body. It is read before the session opens a connection, so that a slow client holds none."""
    return await request.body()


ReceivedBody = Annotated[bytes, Depends(received_body)]


def _page_of(description: str) -> Responses:
    content = {"schema": {"type": "string"}, "example": "<!doctype html>…"}
    return {200: {"description": description, "content": {"text/html": content}}}


@router.get(
    "/{resume_token}",
    response_class=HTMLResponse,
    operation_id="showQuestion",
    summary="Show the question of an execution",
    responses=_page_of("A page with the question and a form.") | NOT_FOUND | ANSWERED,
)
async def show(
    request: Request, session: DbSession, resume_token: ResumeToken, admission: RequestAdmission
) -> Response:
    """Show a page on which a person answers the question of a `wait.webhook` listener. Changes nothing."""
    try:
        return resume_pages.question_page(await open_wait(session, get_settings(), resume_token, admission))
    except BloxError as error:
        return _error(request, error)


@router.post(
    "/{resume_token}",
    response_model=AnswerAccepted,
    operation_id="answerQuestion",
    summary="Resume an execution",
    responses=response_of(200, "The answer is accepted. A browser gets a page.", {"status": "accepted"})
    | errors(413, 422)
    | NOT_FOUND
    | ANSWERED,
    openapi_extra=any_body("The answer: JSON, a form or text of at most 64 KiB."),
)
async def answer(
    request: Request, session: DbSession, resume_token: ResumeToken, admission: RequestAdmission, body: ReceivedBody
) -> Any:
    """Answer the question of a `wait.webhook` listener. The body is the listener's answer. A URL can be called once."""
    try:
        return await _answer(request, session, resume_token, admission, body)
    except BloxError as error:
        if not _wants_page(request):
            raise
        return _error(request, error)


async def _answer(
    request: Request, session: AsyncSession, token: str, admission: Admission, body: bytes
) -> HTMLResponse | AnswerAccepted:
    opened = await open_wait(session, get_settings(), token, admission)
    content_type = request.headers.get("content-type")
    try:
        given = read_answer(opened.config, body, content_type)
    except Unprocessable as error:
        if not _wants_page(request) or FORM not in (content_type or ""):
            raise
        return resume_pages.rejected_page(opened, error, dict(parse_qsl(body.decode(errors="replace"))))
    client = Client(client_address(request.scope), request.headers.get("user-agent"))
    await accept_answer(session, opened, given, client)
    return resume_pages.accepted_page() if _wants_page(request) else AnswerAccepted(status="accepted")


def _wants_page(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


def _error(request: Request, error: BloxError) -> Response:
    return resume_pages.error_page(error) if _wants_page(request) else error_response(request, error)
