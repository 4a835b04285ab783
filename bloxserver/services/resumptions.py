"""Calls that resume executions: the form of a wait, its answers, and their acceptance."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl
from uuid import UUID

import sqlalchemy as sa
from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.errors import BloxError, Conflict, NotFound, Unprocessable
from bloxserver.models.database import WakeReason, release, wake_engine_after_commit
from bloxserver.models.tables import ExecutionRecord, ResumptionRecord
from bloxserver.models.upsert import insert_into
from bloxserver.organism.load import parse_organism
from bloxserver.organism.problems import OrganismError
from bloxserver.queries.resumptions import Wait, read_wait
from bloxserver.resume_tokens import get_resume_tokens
from bloxserver.services.executions import input_of_body
from bloxserver.services.rate_limits import UNLIMITED, Admission
from bloxserver.settings import Settings
from bloxserver.storable import json_text, storable_text
from bloxserver.wait_forms import BUTTON, RESPONDER

if TYPE_CHECKING:
    from bloxserver.blocks.wait_webhook import WaitField, WaitWebhookConfig

MAX_BODY_BYTES = 64 * 1024
"""About a millisecond to read."""
MAX_TEXT = 10_000
"""Characters of a field."""
MAX_NAME = 200
MAX_USER_AGENT = 500
NUMBER = re.compile(r"[+-]?(?=.?[0-9])[0-9]{0,200}(\.[0-9]{0,200})?([eE][+-]?[0-9]{1,9})?")
FORM = "application/x-www-form-urlencoded"


class BodyTooLarge(BloxError):
    """The body of a call exceeds `MAX_BODY_BYTES`."""

    status = 413

    def __init__(self) -> None:
        super().__init__("payload_too_large", f"Request body is larger than {MAX_BODY_BYTES} bytes")


class AlreadyAnswered(Conflict):
    """The wait has received a call."""

    def __init__(self) -> None:
        super().__init__("already_answered", "This question has been answered")


class OpenWait(NamedTuple):
    """A wait that a call can end."""

    wait: Wait
    config: WaitWebhookConfig

    @property
    def question(self) -> str | None:
        """The question; None before the wait begins."""
        if self.wait.output is None:
            return None
        question: str = json.loads(self.wait.output)["question"]
        return question


class Client(NamedTuple):
    """The client that calls."""

    address: str | None
    user_agent: str | None


class Answer(NamedTuple):
    """The body of a call as it is stored, and the name of the person who answers."""

    payload: str | None
    name: str | None


async def open_wait(
    session: AsyncSession, settings: Settings, token: str, admission: Admission = UNLIMITED
) -> OpenWait:
    """The wait that a token names. The session holds no connection when this returns.

    Raises `NotFound`, equally for an invalid token and for a wait that is over, `AlreadyAnswered`, and `RateLimited`.
    """
    tokens = get_resume_tokens(settings)
    named = tokens.read(token) if tokens else None
    if named is None:
        admission.charge_invalid_token()
        raise NotFound("Wait")
    wait = await read_wait(session, *named)
    admission.count("webhook", token, wait.plan.webhooks_per_minute)
    await release(session)
    if wait.is_answered:
        raise AlreadyAnswered
    # The blocks are imported when a URL is called, and not with the application.
    from bloxserver.blocks.wait_webhook import WaitWebhookConfig
    from bloxserver.organism.model import UnknownListener

    try:
        listener = (await parse_organism(wait.organism_yaml, wait.user_id)).listener(wait.listener)
    except (OrganismError, UnknownListener):
        raise NotFound("Wait") from None
    if not isinstance(listener.config, WaitWebhookConfig):
        raise NotFound("Wait")
    return OpenWait(wait, listener.config)


async def accept_answer(session: AsyncSession, opened: OpenWait, answer: Answer, client: Client) -> None:
    """Store the answer, and resume the execution if it is suspended. Raises `NotFound` and `AlreadyAnswered`."""
    # A worker that suspends the execution, or ends the wait, commits before this has the lock, or reads the answer.
    wait = await read_wait(session, opened.wait.execution_id, opened.wait.listener, lock=True)
    if wait.is_answered:
        raise AlreadyAnswered
    moment = now()
    answered_by = {
        "address": client.address,
        "user_agent": client.user_agent and storable_text(client.user_agent[:MAX_USER_AGENT]),
        "name": answer.name,
        "answered_at": moment.isoformat(),
    }
    of = {"execution_id": wait.execution_id, "listener": wait.listener}
    values = {**of, "payload": answer.payload, "answered_by": answered_by}
    insert = insert_into(session, ResumptionRecord).values(values).on_conflict_do_nothing()
    if (await session.execute(insert.returning(ResumptionRecord.listener))).first() is None:
        raise AlreadyAnswered
    await _resume(session, wait.execution_id)


async def _resume(session: AsyncSession, execution_id: UUID) -> None:
    """Make an execution due that is suspended. The calling code has locked it."""
    row = ExecutionRecord
    await session.execute(
        sa.update(row)
        .where(row.id == execution_id, row.lease.is_(None), row.resume_at.is_not(None))
        .values(resume_at=now())
        .execution_options(synchronize_session=False)
    )
    wake_engine_after_commit(session, WakeReason.EXECUTION)


def read_answer(config: WaitWebhookConfig, body: bytes, content_type: str | None) -> Answer:
    """The answer that a body contains.

    A form is an object, and its member `answered_by` is the name. JSON is its value, and any other body is text.
    Raises `BodyTooLarge`, and `Unprocessable` if the body does not have the members that the config requires.
    """
    if len(body) > MAX_BODY_BYTES:
        raise BodyTooLarge
    is_form = (content_type or "").partition(";")[0].strip().lower() == FORM
    if not is_form and not config.has_form:
        return Answer(input_of_body(body, content_type).payload, None)
    values = _form(body) if is_form else _json_object(body)
    name = values.pop(RESPONDER, None)
    shown = storable_text(name.strip()[:MAX_NAME]) if isinstance(name, str) else ""
    if config.has_form:
        values = _checked(config, values, is_form=is_form)
    return Answer(json_text(values), shown or None)


def _form(body: bytes) -> dict[str, JsonValue]:
    """The members of a form. The last value of a repeated one counts."""
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=1_000, errors="replace")
    except ValueError:
        raise Unprocessable({"body": "The body is not a valid form"}) from None
    return {storable_text(name): storable_text(value) for name, value in pairs}


def _json_object(body: bytes) -> dict[str, JsonValue]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Unprocessable({"body": "The body must be a form or a JSON object"})
    return value


def _checked(config: WaitWebhookConfig, values: Mapping[str, JsonValue], *, is_form: bool) -> dict[str, JsonValue]:
    """The value of each field, null for one that is not given. Raises `Unprocessable`."""
    reasons: dict[str, str] = {}
    checked: dict[str, JsonValue] = {}
    for field in config.fields:
        try:
            checked[field.name] = _value(field, values.get(field.name), is_form=is_form)
        except ValueError as error:
            reasons[field.name] = str(error)
    if config.buttons:
        checked[BUTTON] = values.get(BUTTON)
        if checked[BUTTON] not in [button.value for button in config.buttons]:
            reasons[BUTTON] = f"Use one of: {', '.join(button.value for button in config.buttons)}"
    for name in values:
        if name not in checked and name not in reasons:
            reasons[storable_text(name[:MAX_NAME])] = "There is no such field"
    if reasons:
        raise Unprocessable(reasons)
    return checked


def _value(field: WaitField, given: JsonValue, *, is_form: bool) -> JsonValue:
    """The value of a field, or None. Raises `ValueError` with a reason for the person who answers."""
    if field.type == "boolean":
        # A form has no member for a box that is not ticked.
        value = (given in ("true", "on")) if is_form else (False if given is None else given)
        if not isinstance(value, bool):
            raise ValueError("Use true or false")
        if field.required and not value:
            raise ValueError("This must be confirmed")
        return value
    if given is None or (isinstance(given, str) and not given.strip()):
        if field.required:
            raise ValueError("A value is required")
        return None
    if field.type == "number":
        return _number(given, is_form=is_form)
    if not isinstance(given, str):
        raise ValueError("Use text")
    if field.type == "select" and given not in field.options:
        raise ValueError(f"Use one of: {', '.join(field.options)}")
    if len(given) > MAX_TEXT:
        raise ValueError(f"Use at most {MAX_TEXT} characters")
    return storable_text(given)


def _number(given: JsonValue, *, is_form: bool) -> int | float:
    if is_form and isinstance(given, str) and NUMBER.fullmatch(text := given.strip()):
        given = int(text) if text.lstrip("+-").isdecimal() else float(text)
    if isinstance(given, bool) or not isinstance(given, int | float) or not abs(given) <= sys.float_info.max:
        raise ValueError("Use a number")
    return given
