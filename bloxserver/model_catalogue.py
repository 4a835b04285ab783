"""The providers of language models, and which of them serve a model: from `LLM_PROVIDERS`, or from single settings."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from bloxserver.errors import SettingsError
from bloxserver.settings import VALUE_ERROR_PREFIX, Settings, read_variable
from bloxserver.yaml_files import read_yaml_file

ProviderKind = Literal["openai", "anthropic", "xai", "together"]
BASE_URLS: dict[ProviderKind, str] = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com",
    "xai": "https://api.x.ai/v1",
    "together": "https://api.together.xyz/v1",
}
PATTERNS: dict[ProviderKind, tuple[str, ...]] = {
    "openai": ("gpt-*", "chatgpt-*", "o[0-9]*", "text-embedding-*"),
    "anthropic": ("claude*",),
    "xai": ("grok*",),
    "together": ("*/*",),
}
"""The names of models of the providers that single settings configure."""
DEFAULT_NAME = "default"
"""The name of the provider of `LLM_BASE_URL`."""
ANY = "*"
PATTERN_CHARACTERS = frozenset("*?[")


@dataclass(frozen=True)
class Price:
    """In USD per million tokens."""

    input: float
    output: float


@dataclass(frozen=True)
class Provider:
    """A server of language models."""

    name: str
    kind: ProviderKind
    base_url: str
    key: SecretStr | None = None
    key_setting: str | None = None
    """The variable with the key, for messages."""
    url_setting: str = "LLM_PROVIDERS"
    """The variable that determines the URL, for messages."""
    models: Mapping[str, str | None] = field(default_factory=lambda: {ANY: None})
    """The models that it offers: names or patterns, and the provider's own name of a model if it differs."""
    prices: Mapping[str, Price] = field(default_factory=dict)
    """By names of models."""
    max_concurrent: int | None = None
    """Concurrent requests of all processes; None is unlimited."""
    priority: int = 100
    """Of the providers of a model, the one with the lowest number is asked first."""
    timeout_seconds: float | None = None
    accepts_own_keys: bool = False
    """Whether users' own keys may be sent to this URL although it is not one of the provider itself."""
    first_token_timeout_seconds: float | None = None
    """The time in which a streamed response must begin."""

    @property
    def uses_anthropic_api(self) -> bool:
        return self.kind == "anthropic"

    def match(self, model: str) -> str | None:
        """Return the most exact name or pattern that matches the model, or None."""
        if model in self.models:
            return model
        matching = [pattern for pattern in self.models if fnmatchcase(model, pattern)]
        return max(matching, key=len, default=None)


@dataclass(frozen=True)
class Route:
    """A provider, and its own name of the requested model."""

    provider: Provider
    model: str


@dataclass(frozen=True)
class Catalogue:
    """All providers, and the names for lists of models."""

    providers: Sequence[Provider]
    aliases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    default_model: str | None = None
    is_from_file: bool = False
    timeout_seconds: float | None = None
    """Of the providers that only keys of users make available."""

    def routes(self, model: str | None) -> list[Route]:
        """Return the providers to ask for the model, in order. `model` may be an alias; None is the default model."""
        return [
            Route(provider, provider.models[pattern] or name)
            for name in self._names(model)
            for pattern, provider in self._matching(name)
        ]

    def routes_with_keys(self, model: str | None, kinds: Collection[str]) -> list[Route]:
        """Return the providers to ask with a user's own keys for these kinds of providers, in order, without the keys.

        A provider need not be configured if the name of the model is one of its patterns, and no configured provider
        names the model. A key is never sent to another server with the same API.
        """
        return [route for name in self._names(model) for route in self._own_routes_of(name, kinds)]

    def url_for_own_keys(self, kind: ProviderKind) -> str:
        """Return the URL of the provider with which a key is tested."""
        configured = [each for each in self.providers if each.kind == kind and may_receive_own_keys(each)]
        return min(configured, key=lambda each: each.priority).base_url if configured else BASE_URLS[kind]

    def _own_routes_of(self, model: str, kinds: Collection[str]) -> Iterator[Route]:
        matching = self._matching(model)
        named = any(pattern != ANY for pattern, _ in matching)
        by_kind: dict[str, Route] = {}
        for kind, patterns in PATTERNS.items():
            if not named and kind in kinds and any(fnmatchcase(model, pattern) for pattern in patterns):
                url = self.url_for_own_keys(kind)
                by_kind[kind] = Route(Provider(kind, kind, url, timeout_seconds=self.timeout_seconds), model)
        for pattern, each in matching:
            if each.kind in kinds and may_receive_own_keys(each):
                by_kind.setdefault(each.kind, Route(each, each.models[pattern] or model))
        yield from by_kind.values()

    def _names(self, model: str | None) -> Sequence[str]:
        name = model or self.default_model
        return self.aliases.get(name, (name,)) if name else ()

    def _matching(self, model: str) -> list[tuple[str, Provider]]:
        matching = [(pattern, each) for each in self.providers if (pattern := each.match(model)) is not None]
        # A provider of any model is asked last, because it may not have this one.
        return sorted(matching, key=lambda pair: (pair[0] == ANY, pair[1].priority))

    def named_models(self) -> dict[str, str]:
        """Return the names of models and aliases, each with the name of its first provider; patterns are not names."""
        names = {*self.aliases, *(name for provider in self.providers for name in provider.models)}
        named = {name: self.routes(name) for name in sorted(names) if not PATTERN_CHARACTERS.intersection(name)}
        return {name: routes[0].provider.name for name, routes in named.items() if routes}

    def problem(self, model: str | None) -> str | None:
        """Return what is missing for this model, or None. `model` defaults to that of the settings."""
        missing: list[str] = []
        if not self.providers:
            missing.append("set LLM_API_KEY, or LLM_BASE_URL for a server that needs no key")
        for provider in self.providers:
            if not is_valid_url(provider.base_url):
                missing.append(f"{provider.url_setting} must be an http or https URL without user name and password")
        if not (model or self.default_model):
            missing.append("set model in the listener, or LLM_MODEL")
        elif self.providers and not self.routes(model):
            missing.append(f"no provider offers the model {(model or self.default_model)!r}")
        return "; ".join(missing) or None

    @property
    def secrets(self) -> list[tuple[str, str]]:
        """Pairs of the mark that replaces a key of a provider, and the key."""
        return [
            (f"[setting {each.key_setting}]", each.key.get_secret_value())
            for each in self.providers
            if each.key is not None
        ]


@lru_cache(maxsize=4)
def catalogue_of(settings: Settings) -> Catalogue:
    """Return the catalogue of the settings. Raises `SettingsError` if the file of `LLM_PROVIDERS` is invalid."""
    if settings.llm_providers is not None:
        return read_catalogue(Path(settings.llm_providers), settings.llm_model)
    providers = [*_default_providers(settings), *_providers_of_keys(settings)]
    if len(providers) == 1:  # there is no other choice for a model with an unknown name
        providers = [_offering_any(providers[0])]
    return Catalogue(providers, default_model=settings.llm_model, timeout_seconds=settings.llm_timeout_seconds)


def _default_providers(settings: Settings) -> Iterator[Provider]:
    """The provider of `LLM_BASE_URL` or `LLM_API_KEY`. With the key alone, the model determines the API."""
    key, url = settings.llm_api_key, settings.llm_base_url
    if url is None and key is None:
        return
    if settings.llm_provider is not None:
        kinds: list[ProviderKind] = [settings.llm_provider]
    elif url is not None:
        kinds = ["anthropic" if is_within(url, "anthropic.com") else "openai"]
    else:
        keys = _keys(settings)
        kinds = [kind for kind in ("anthropic", "openai") if keys[kind] is None]
    for kind in kinds:
        # Other providers with a pattern for the model are asked before this one, except for the default model.
        offers_any = url is not None or settings.llm_provider is not None or kind == "openai"
        names = dict.fromkeys([ANY] if offers_any else PATTERNS[kind])
        if settings.llm_model is not None and (len(kinds) == 1 or kind == _kind_of(settings.llm_model)):
            names[settings.llm_model] = None
        yield Provider(
            name=kind if url is None else DEFAULT_NAME,
            kind=kind,
            base_url=url or BASE_URLS[kind],
            key=key,
            key_setting="LLM_API_KEY",
            url_setting="LLM_BASE_URL",
            models=names,
            priority=0,
            timeout_seconds=settings.llm_timeout_seconds,
        )


def _kind_of(model: str) -> ProviderKind:
    return "anthropic" if model.startswith("claude") else "openai"


def _keys(settings: Settings) -> dict[ProviderKind, SecretStr | None]:
    return {
        "openai": settings.openai_api_key,
        "anthropic": settings.anthropic_api_key,
        "xai": settings.xai_api_key,
        "together": settings.together_api_key,
    }


def _providers_of_keys(settings: Settings) -> Iterator[Provider]:
    for kind, key in _keys(settings).items():
        if key is not None:
            yield Provider(
                name=kind,
                kind=kind,
                base_url=BASE_URLS[kind],
                key=key,
                key_setting=f"{kind.upper()}_API_KEY",
                models=dict.fromkeys(PATTERNS[kind]),
                timeout_seconds=settings.llm_timeout_seconds,
            )


def _offering_any(provider: Provider) -> Provider:
    return Provider(**{**vars(provider), "models": {**provider.models, ANY: None}})


def operator_secrets(settings: Settings) -> list[tuple[str, str]]:
    """`Settings.operator_secrets` with the keys of providers. Raises `SettingsError` as `catalogue_of`."""
    return [*settings.operator_secrets, *catalogue_of(settings).secrets]


def is_valid_url(text: str) -> bool:
    try:
        url = urlsplit(text)
    except ValueError:
        return False
    return url.scheme in ("http", "https") and bool(url.hostname) and url.username is None and url.password is None


def is_within(url: str, domain: str) -> bool:
    """Whether the host of the URL is the domain or one below it."""
    host = (urlsplit(url).hostname or "") if is_valid_url(url) else ""
    return host == domain or host.endswith(f".{domain}")


def may_receive_own_keys(provider: Provider) -> bool:
    """Whether the URL is one of the provider itself, or one that the operator allows."""
    if provider.accepts_own_keys:
        return True
    own = urlsplit(BASE_URLS[provider.kind])
    try:
        url = urlsplit(provider.base_url)
        return (url.scheme, url.port) == (own.scheme, own.port) and is_within(provider.base_url, own.hostname or "")
    except ValueError:
        return False


# The file.


def _checked_url(url: str) -> str:
    if not is_valid_url(url):
        raise ValueError("must be an http or https URL without user name and password")
    return url.rstrip("/")


def _models_by_name(value: object) -> object:
    return dict.fromkeys(value) if isinstance(value, list) and all(isinstance(name, str) for name in value) else value


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _PriceEntry(_Entry):
    input: float = Field(ge=0, le=1_000_000)
    output: float = Field(ge=0, le=1_000_000)


class _ModelEntry(_Entry):
    id: str | None = Field(None, min_length=1, max_length=200)
    prices: _PriceEntry | None = None


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]
ModelName = Annotated[str, Field(min_length=1, max_length=200)]


def _any_model() -> dict[str, _ModelEntry | None]:
    return {ANY: None}


class _ProviderEntry(_Entry):
    kind: ProviderKind
    base_url: Annotated[str, AfterValidator(_checked_url)] | None = None
    key_variable: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    models: Annotated[dict[ModelName, _ModelEntry | None], Field(min_length=1), BeforeValidator(_models_by_name)] = (
        Field(default_factory=_any_model)
    )
    max_concurrent: int | None = Field(None, ge=1, le=1_000_000)
    priority: int = Field(100, ge=0, le=1_000_000)
    timeout_seconds: float | None = Field(None, gt=0, le=3_600)
    own_keys: bool = False
    first_token_timeout_seconds: float | None = Field(None, gt=0, le=3_600)


class _File(_Entry):
    providers: dict[Name, _ProviderEntry] = Field(min_length=1)
    aliases: dict[ModelName, Annotated[list[ModelName], Field(min_length=1)]] = Field(default_factory=dict)
    default_model: ModelName | None = None


def read_catalogue(path: Path, default_model: str | None = None) -> Catalogue:
    """Return the catalogue in the file. `default_model` is used if the file has none.

    Raises `SettingsError` with a line for each problem, which contains no key.
    """
    try:
        given = _File.model_validate(read_yaml_file("LLM_PROVIDERS", path) or {})
    except ValidationError as error:
        raise SettingsError([_problem(item) for item in error.errors(include_input=False)]) from None
    problems: list[str] = []
    providers = [_provider(name, entry, problems) for name, entry in given.providers.items()]
    catalogue = Catalogue(providers, given.aliases, given.default_model or default_model, is_from_file=True)
    for alias, names in given.aliases.items():
        problems += [
            f"LLM_PROVIDERS: aliases.{alias}: no provider offers {name!r}"
            for name in names
            if name in given.aliases or not catalogue.routes(name)
        ]
    if catalogue.default_model is not None and not catalogue.routes(None):
        problems.append(f"LLM_PROVIDERS: no provider offers the default model {catalogue.default_model!r}")
    if problems:
        raise SettingsError(problems)
    return catalogue


def _provider(name: str, entry: _ProviderEntry, problems: list[str]) -> Provider:
    key = None if entry.key_variable is None else read_variable(entry.key_variable)
    if entry.key_variable is not None and key is None:
        problems.append(f"LLM_PROVIDERS: providers.{name}: the variable {entry.key_variable} is not set")
    if entry.key_variable is None and entry.base_url is None:
        problems.append(f"LLM_PROVIDERS: providers.{name}: set key_variable, or base_url of a server without a key")
    models = {model: None if offer is None else offer.id for model, offer in entry.models.items()}
    prices = {
        model: Price(offer.prices.input, offer.prices.output)
        for model, offer in entry.models.items()
        if offer is not None and offer.prices is not None
    }
    return Provider(
        name=name,
        kind=entry.kind,
        base_url=entry.base_url or BASE_URLS[entry.kind],
        key=None if key is None else SecretStr(key),
        key_setting=entry.key_variable,
        models=models,
        prices=prices,
        max_concurrent=entry.max_concurrent,
        priority=entry.priority,
        timeout_seconds=entry.timeout_seconds,
        accepts_own_keys=entry.own_keys,
        first_token_timeout_seconds=entry.first_token_timeout_seconds,
    )


def _problem(item: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in item["loc"] if part != "[key]")
    return f"LLM_PROVIDERS: {place}{': ' if place else ''}{item['msg'].removeprefix(VALUE_ERROR_PREFIX)}"
