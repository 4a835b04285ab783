"""Language models in the form of OpenAI's API, for programs that use OpenAI's libraries."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from bloxserver.api import examples_of_models as examples
from bloxserver.api.chat_requests import read_chat_request
from bloxserver.api.dependencies import AuthenticatedUser, CurrentUser
from bloxserver.api.embedding_requests import embedding_list, read_embedding_request
from bloxserver.api.model_calls import ModelResponse, Models, ModelsIfAny, chat_completion
from bloxserver.api.openai_errors import OPENAI_PREFIX
from bloxserver.api.openapi import Responses, error_of, errors, response_of
from bloxserver.api.schemas import ChatCompletion, EmbeddingList, LanguageModelList
from bloxserver.api.scopes import requires_scope
from bloxserver.api.stream_slots import StreamSlot, refuse_stream_again
from bloxserver.llm.calls import AdmissionReport, Caller
from bloxserver.models.enums import Scope

router = APIRouter(prefix=OPENAI_PREFIX, tags=["language models"])


async def _body(request: Request) -> bytes:
    """Read before the session opens a connection, so that a slow client holds none."""
    return await request.body()


Body = Annotated[bytes, Depends(_body)]


LIMIT_HEADERS = {
    "X-RateLimit-Limit": "The calls of language models in a minute that the plan allows, if this call used one.",
    "X-RateLimit-Remaining": "How many of them remain in this minute.",
    "X-RateLimit-Reset": "The seconds until the next minute.",
}


def _described(description: str, example: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"type": "object"}, "example": example}}
    return {"requestBody": {"required": True, "description": description, "content": content}}


def _failures() -> Responses:
    return (
        error_of(
            400,
            "A parameter is not supported, or the provider rejects the request.",
            "unsupported_parameter",
            "The parameter `logprobs` is not supported",
        )
        | error_of(404, "No provider offers the model.", "llm_model_not_found", 'no provider offers the model "none"')
        | error_of(
            502,
            "The provider's response is cut off or unusable.",
            "llm_cut_off",
            "the connection closed before the response was complete",
        )
        | error_of(
            504,
            "The provider did not respond in time.",
            "llm_timeout",
            "the language model did not respond within 30 seconds",
        )
        | errors(422)
    )


def _caller(user: CurrentUser) -> Caller:
    return Caller(user.id, user.tier, user.plan, report=AdmissionReport())


@router.post(
    "/chat/completions",
    response_model=ChatCompletion,
    operation_id="createChatCompletion",
    summary="Create a chat completion",
    dependencies=[Depends(refuse_stream_again)],
    responses=response_of(
        200,
        "The completion. With `stream`, Server-Sent Events with its parts, and `[DONE]` at the end.",
        examples.COMPLETION,
        headers=LIMIT_HEADERS,
    )
    | _failures(),
    openapi_extra=_described("A request as for OpenAI's chat completions.", examples.CHAT),
)
@requires_scope(Scope.LLM)
async def create_chat_completion(body: Body, user: AuthenticatedUser, slot: StreamSlot, models: Models) -> Response:
    """Ask a language model. An error within a stream is an event with the member `error`, without `[DONE]` after it."""
    return chat_completion(models, read_chat_request(body), _caller(user))


@router.post(
    "/embeddings",
    response_model=EmbeddingList,
    operation_id="createEmbeddings",
    summary="Create embeddings",
    dependencies=[Depends(refuse_stream_again)],
    responses=response_of(200, "The embeddings.", examples.EMBEDDINGS, headers=LIMIT_HEADERS) | _failures(),
    openapi_extra=_described("A request as for OpenAI's embeddings.", examples.TEXTS),
)
@requires_scope(Scope.LLM)
async def create_embeddings(body: Body, user: AuthenticatedUser, slot: StreamSlot, models: Models) -> Response:
    """Return a vector for each text, or for each list of tokens."""
    request, caller = read_embedding_request(body), _caller(user)

    async def respond() -> Response:
        embeddings = await models.embed(request.inputs, request.model, caller, dimensions=request.dimensions)
        return JSONResponse(embedding_list(request, embeddings))

    return ModelResponse(respond, caller)


@router.get(
    "/models",
    response_model=LanguageModelList,
    operation_id="listLanguageModels",
    summary="List language models",
    responses=response_of(200, "The models and aliases, sorted by name.", examples.MODELS),
)
@requires_scope(Scope.LLM)
async def list_language_models(user: AuthenticatedUser, models: ModelsIfAny) -> Response:
    """Return the models that have a name in the settings. A provider may offer others."""
    named = {} if models is None else models.named_models()
    data = [{"id": name, "object": "model", "created": 0, "owned_by": provider} for name, provider in named.items()]
    return JSONResponse({"object": "list", "data": data})
