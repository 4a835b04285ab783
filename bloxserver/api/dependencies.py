"""Dependencies of routes: sessions, the user, path parameters, pages and bodies.

They are coroutine functions even if they wait for nothing: FastAPI calls other functions and classes in a thread, which
takes longer than most of them and waits for the interpreter while the event loop is busy.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import Annotated, Any, Protocol
from uuid import UUID

from fastapi import Depends, Header, Path, Query, Request
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.addresses import client_address
from bloxserver.api.api_key_sign_in import find_key_access
from bloxserver.api.current_user import CurrentUser as CurrentUser
from bloxserver.api.current_user import OpenSession, count_request, find_unread_user, read_user
from bloxserver.api.hosts import check_bypass
from bloxserver.api.scopes import check_access
from bloxserver.api.session_source import SessionSource as SessionSource
from bloxserver.api.shutdown import Shutdown
from bloxserver.api_key_format import is_key
from bloxserver.errors import Forbidden, Unauthorized
from bloxserver.models.connection_pool import current_tenant
from bloxserver.models.database import get_db
from bloxserver.models.enums import ActorKind
from bloxserver.models.single_statements import Statements
from bloxserver.models.tables import Tier
from bloxserver.queries.api_keys import KeyAccess
from bloxserver.queries.paging import MAX_PAGE, PageRequest
from bloxserver.services.audit import Actor, current_actor
from bloxserver.services.rate_limits import UNLIMITED, Admission
from bloxserver.services.users import DEV_CLAIMS
from bloxserver.services.webhooks import WebhookCall, webhook_call
from bloxserver.settings import get_settings

MAX_DEPTH_HEADER = 1000

DbSession = Annotated[AsyncSession, Depends(get_db, scope="function")]
"""The request's session. With function scope it commits before the response is sent, so that a client that receives 201
can GET the resource.
"""


ReadingStatements = Annotated[Statements, Depends(get_db, scope="function")]
"""The same for a route that executes one statement. The session is left out if the framework is, see `lean_routes`."""


async def _session_source(request: Request) -> SessionSource:
    return SessionSource(request)


Sessions = Annotated[SessionSource, Depends(_session_source)]


async def server_shutdown(request: Request) -> Shutdown:
    """The shutdown state of the server that runs the app."""
    shutdown: Shutdown = request.app.state.shutdown
    return shutdown


ServerShutdown = Annotated[Shutdown, Depends(server_shutdown)]


class EngineHealth(Protocol):
    """The engine of a process that runs executions."""

    @property
    def problem(self) -> str | None:
        """Why the engine cannot run executions now; null if it can."""


async def local_engine(request: Request) -> EngineHealth | None:
    """The engine of this process; null if only workers run executions, or if the app runs without its lifespan."""
    engine: EngineHealth | None = getattr(request.app.state, "engine", None)
    return engine


LocalEngine = Annotated[EngineHealth | None, Depends(local_engine)]

FlowId = Annotated[UUID, Path(description="The flow's id.")]
TriggerId = Annotated[UUID, Path(description="The trigger's id.")]
ExecutionId = Annotated[UUID, Path(description="The execution's id.")]
WebhookToken = Annotated[str, Path(description="The secret token in the webhook's URL.")]
VersionNumber = Annotated[int, Path(ge=1, le=2**31 - 1, description="The version's number.")]


Authorization = Annotated[str | None, Header(include_in_schema=False)]


def bearer_token(authorization: str | None) -> str:
    """The token in an `Authorization` header. Raises `Unauthorized`."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized("missing_token", "Missing authentication token")
    return token.strip()


async def validate_clerk_token(token: str) -> dict[str, Any]:
    """The claims of a valid token. Raises `Unauthorized`, or `Unavailable` if Clerk's keys cannot be fetched."""
    from bloxserver.clients.clerk import get_verifier  # its cryptography is imported in no development server

    return await get_verifier(get_settings()).verify(token)


async def _token_claims(token: str) -> dict[str, Any]:
    """The claims of a token of the configured identity provider. Raises `Unauthorized` and `Unavailable`."""
    settings = get_settings()
    if settings.auth == "keys":
        raise Unauthorized("invalid_token", "This server accepts only API keys")
    if settings.oidc_issuer is None:
        return await validate_clerk_token(token)
    from bloxserver.clients.oidc import get_verifier

    return await get_verifier(settings).verify(token)


async def request_admission(request: Request) -> Admission:
    """The rate limits of the request."""
    admission: Admission = request.scope.get("state", {}).get("admission", UNLIMITED)
    return admission


RequestAdmission = Annotated[Admission, Depends(request_admission)]


async def get_current_user(request: Request, session: DbSession, authorization: Authorization = None) -> CurrentUser:
    """The signed-in user. The first valid token creates the user. Raises `Unauthorized` and `RateLimited`."""
    return await sign_in(request, authorization, lambda: nullcontext(session))


async def sign_in(request: Request, authorization: str | None, open_session: OpenSession) -> CurrentUser:
    """As `get_current_user`. The session is opened only to read or create the user."""
    admission = await request_admission(request)
    claims, access = await _identity(request, authorization, admission)
    current_tenant.set(claims["sub"])
    admission.refuse_exceeded("user", claims["sub"])
    if access is not None:
        admission.refuse_exceeded("api_key", str(access.id))
        check_access(request, access)
    current_actor.set(_actor(request, access))
    unread = find_unread_user(request, claims, access, admission, open_session)
    if unread is not None:
        return unread
    async with open_session() as session:
        user = CurrentUser(await read_user(session, claims, access), claims, access)
    count_request(user, admission)
    return user


def _actor(request: Request, access: KeyAccess | None) -> Actor:
    """Who changes what the request changes, for the audit log."""
    kind, key_id = (ActorKind.USER, None) if access is None else (ActorKind.API_KEY, str(access.id))
    return Actor(kind, key_id, client_address(request.scope), request.scope.get("state", {}).get("request_id"))


async def _identity(
    request: Request, authorization: str | None, admission: Admission
) -> tuple[dict[str, Any], KeyAccess | None]:
    """The claims of the request's token, or those of the user of its API key, and the access of the key.

    The session has no connection yet, so none is held while the issuer's keys are fetched.
    """
    # Checks of the sign-in, not of the routes, so that they do not apply if a test overrides the sign-in.
    if get_settings().dev_bypass:
        check_bypass(request)
        return DEV_CLAIMS, None
    token = bearer_token(authorization)
    try:
        if is_key(token):
            access = await find_key_access(request, token)
            return {"sub": access.clerk_id}, access
        return await _token_claims(token), None
    except Unauthorized:
        admission.charge_invalid_token()
        raise


async def get_optional_user(
    request: Request, session: DbSession, authorization: Authorization = None
) -> CurrentUser | None:
    """The signed-in user, or None without a valid token."""
    try:
        return await get_current_user(request, session, authorization)
    except Unauthorized:
        return None


AuthenticatedUser = Annotated[CurrentUser, Depends(get_current_user)]
OptionalUser = Annotated[CurrentUser | None, Depends(get_optional_user)]


class require_tier:  # noqa: N801
    """A dependency that requires one of these tiers. Raises `Forbidden`."""

    def __init__(self, *names: str) -> None:
        self.names = [str(name) for name in names]

    async def __call__(self, user: AuthenticatedUser) -> CurrentUser:
        if user.tier not in self.names:
            raise Forbidden(
                "tier_required",
                f"This feature requires one of: {', '.join(self.names)}",
                details={"tiers": self.names},
            )
        return user


RequirePro = Annotated[CurrentUser, Depends(require_tier(Tier.PRO, Tier.ENTERPRISE))]
RequireEnterprise = Annotated[CurrentUser, Depends(require_tier(Tier.ENTERPRISE))]


def _page(default_size: int) -> Any:
    async def page_query(
        page: Annotated[int, Query(ge=1, le=MAX_PAGE, description="The number of the page, from 1.")] = 1,
        page_size: Annotated[
            int, Query(ge=1, le=1000, description="The maximum number of items in a page.")
        ] = default_size,
    ) -> PageRequest:
        return PageRequest(page, page_size)

    return Depends(page_query)


FlowPage = Annotated[PageRequest, _page(20)]
StepPage = Annotated[PageRequest, _page(100)]
VersionPage = Annotated[PageRequest, _page(20)]

WaitSeconds = Annotated[
    float | None,
    Query(
        gt=0,
        le=60,
        description="Seconds to wait for the end of the execution. If it is still running then, the response is 202.",
    ),
]


async def refuse_exceeded_webhook(
    webhook_token: Annotated[str, Path(description="The secret token in the webhook's URL.")],
    admission: RequestAdmission,
) -> None:
    """Raise `RateLimited` before the body is read, if the webhook has exceeded its limit."""
    current_tenant.set(webhook_token)
    admission.refuse_exceeded("webhook", webhook_token)


async def call_depth(
    depth: Annotated[str, Header(alias="BloxServer-Depth", include_in_schema=False)] = "",
) -> int:
    """The depth of the execution that this request starts: the number of executions that called it, directly or not."""
    return min(int(depth), MAX_DEPTH_HEADER) if re.fullmatch("[0-9]{1,9}", depth) else 0


CallDepth = Annotated[int, Depends(call_depth)]


async def received_call(
    request: Request, webhook_token: WebhookToken, depth: CallDepth, admission: RequestAdmission
) -> WebhookCall:
    """A call of a webhook. It is read before the session opens a connection, so that a slow client holds none."""
    return webhook_call(webhook_token, await request.body(), request.headers, depth, admission, request.url.query)


ReceivedCall = Annotated[WebhookCall, Depends(received_call)]
