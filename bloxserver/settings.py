"""All settings, with their environment variables, meanings and defaults.

An invalid setting does not break an import: `get_settings` uses the default and records the error in `problems`.
`check_startup` then raises an error that names the invalid variables.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, SettingsConfigDict

from bloxserver.database_url import normalised_database_url
from bloxserver.errors import SettingsError
from bloxserver.production_checks import production_problems, production_warnings, sign_in_problems
from bloxserver.setting_groups import BillingSettings, LanguageModelSettings, MailSettings, SignInSettings
from bloxserver.setting_names import find_misspelt
from bloxserver.setting_types import (
    CommaSeparated,
    HostPatterns,
    Networks,
    OptionalSecret,
    OptionalText,
    Proxies,
    blank_as_none,
    split_commas,
)

SYSTEM_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "MONTY_BIN", "TMPDIR", "TZ")
MIN_OPERATOR_SECRET_LENGTH = 12
VALUE_ERROR_PREFIX = "Value error, "
"""Pydantic's prefix for the message of a `ValueError`."""


Tier = Literal["free", "pro", "enterprise", "high_frequency"]


class Settings(SignInSettings, LanguageModelSettings, MailSettings, BillingSettings, BaseSettings):
    """Settings from the environment and from `.env` in the working directory. The environment takes precedence."""

    model_config = SettingsConfigDict(env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True)

    env: Literal["development", "test", "staging", "production"] = Field(
        "development", description="Kind of installation. In production, unsafe settings are refused."
    )
    host: str = Field("0.0.0.0", description="Address that the API binds to.")  # noqa: S104  # nosec B104
    port: int = Field(8000, ge=0, le=65535, description="Port that the API binds to; 0 selects a free port.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Minimum log level.")
    enable_docs: bool = Field(True, description="Serve /docs, /redoc and /openapi.json.")
    cors_origins: CommaSeparated = Field(
        ("http://localhost:3000", "https://app.openblox.ai"),
        description="Browser origins that may call the API, comma-separated.",
    )
    trusted_hosts: HostPatterns = Field(
        (), description="Names under which clients reach the API, comma-separated; *.example.com stands for subdomains."
    )
    webhook_base_url: str = Field("https://api.openblox.ai/webhooks", description="Public base URL of webhooks.")
    max_body_bytes: int = Field(1024 * 1024, ge=1, description="Maximum size of a request body, in bytes.")
    header_timeout_seconds: float = Field(10, gt=0, description="Maximum time for a client to send a request's head.")
    body_timeout_seconds: float = Field(30, gt=0, description="Maximum time for a client to send a request body.")
    write_timeout_seconds: float = Field(
        30, gt=0, description="Time in which a client must read 64 KiB of a response, or the rest of it."
    )
    max_connections: int = Field(2_000, ge=16, le=1_000_000, description="Maximum connections of clients to a process.")
    max_connections_per_address: int = Field(
        200, ge=1, description="Maximum connections from one client address; does not apply to FORWARDED_ALLOW_IPS."
    )
    max_requests_per_address: int = Field(
        4, ge=1, description="Requests of one address that are handled at the same time; more wait for their turn."
    )
    forwarded_allow_ips: Proxies = Field(
        (), description="Addresses and networks of the proxies whose X-Forwarded-* headers are used, comma-separated."
    )
    rate_limits: Annotated[bool | None, BeforeValidator(blank_as_none)] = Field(
        None, description="Limit the rates of requests; if unset, only with ENV=staging and production."
    )

    database_url: str = Field(
        "sqlite+aiosqlite:///./bloxserver.db",
        description="SQLAlchemy URL of the database: sqlite+aiosqlite or postgresql+asyncpg.",
    )
    auto_create_tables: bool = Field(True, description="Migrate the database at startup; ignored in production.")
    allow_sqlite: bool = Field(False, description="Allow SQLite in production.")
    sql_echo: bool = Field(False, description="Log every SQL statement, without its parameters.")
    database_pool_size: int = Field(
        10, ge=1, le=1000, description="Maximum connections in a process's PostgreSQL pool."
    )
    database_pool_timeout_seconds: float = Field(
        5, gt=0, description="Maximum wait for a pooled connection; after that, 503."
    )
    database_statement_timeout_seconds: float = Field(
        30, ge=1, le=3_600, description="Maximum duration of a PostgreSQL statement."
    )

    default_tier: Tier = Field("free", description="Tier of new users.")
    plans_file: OptionalText = Field(None, description="YAML file with limits of plans, which replace the defaults.")
    run_worker: bool = Field(True, description="Run executions in the API process; if false, only workers run them.")
    worker_concurrency: int = Field(
        100, ge=1, le=10_000, description="Maximum concurrent executions of each tier on one worker."
    )
    worker_host: str = Field("127.0.0.1", description="Address on which `bloxserver worker` serves health and metrics.")
    worker_port: Annotated[int | None, BeforeValidator(blank_as_none)] = Field(
        None,
        ge=0,
        le=65535,
        description="Port for health and metrics of a worker; 0 selects a free port; unset serves neither.",
    )
    isolated_processes: int = Field(
        4,
        ge=2,
        le=64,
        description="Maximum processes of an API or worker for Python snippets and for large definitions, expressions "
        "and messages.",
    )
    poll_interval_seconds: float = Field(
        2, gt=0, le=60, description="How often processes poll the database for work that no notification announced."
    )
    heartbeat_interval_seconds: float = Field(5, gt=0, le=60, description="How often a worker sends a heartbeat.")
    heartbeat_timeout_seconds: float = Field(
        20, gt=0, le=600, description="Time without a heartbeat after which a worker's executions are recovered."
    )
    event_loop_timeout: float = Field(
        30,
        ge=0,
        le=86_400,
        description="Seconds after which a process whose event loop is blocked is killed; 0 disables this.",
    )
    shutdown_grace_seconds: float = Field(
        10, ge=0, le=600, description="Time that running executions get to end when a worker shuts down."
    )
    stop_grace_seconds: float = Field(
        30, ge=0, le=86_400, description="Time that executions of a flow get to end when the flow is stopped."
    )
    max_call_depth: int = Field(
        8,
        ge=0,
        le=100,
        description="Maximum depth of flows that call flows or webhooks of this server.",
    )
    concurrency_free: int = Field(2, ge=1, description="Maximum concurrent executions of a user on the free tier.")
    concurrency_pro: int = Field(10, ge=1, description="Maximum concurrent executions of a user on the pro tier.")
    concurrency_enterprise: int = Field(
        50, ge=1, description="Maximum concurrent executions of a user on the enterprise tier."
    )
    concurrency_high_frequency: int = Field(
        100, ge=1, description="Maximum concurrent executions of a user on the high_frequency tier."
    )
    ssrf_allow_cidrs: Networks = Field(
        (),
        description="Private networks in CIDR notation, for example 10.0.0.0/8, comma-separated, that the protection "
        "against server-side request forgery (SSRF) allows.",
    )

    execution_retention_days: int = Field(
        90, ge=0, le=36_500, description="Days after which ended executions are deleted; 0 keeps them forever."
    )
    execution_retention_per_flow: int = Field(
        0, ge=0, description="Number of ended executions to keep per flow; 0 keeps all."
    )
    flow_version_retention: int = Field(
        100, ge=0, description="Number of versions to keep per flow, besides those in use; 0 keeps all."
    )
    audit_retention_days: int = Field(
        365, ge=0, le=36_500, description="Days after which events of the audit log are deleted; 0 keeps them forever."
    )

    metrics_token: OptionalSecret = Field(
        None, description="Bearer token for /metrics; if unset, /metrics is disabled."
    )
    otel_exporter_otlp_endpoint: OptionalText = Field(
        None,
        description="OTLP/HTTP endpoint for traces, for example http://collector:4318; if unset, tracing is disabled.",
    )
    otel_exporter_otlp_traces_endpoint: OptionalText = Field(
        None, description="Full URL for traces, if it is not OTEL_EXPORTER_OTLP_ENDPOINT/v1/traces."
    )

    redis_url: OptionalText = Field(
        None, description="Redis through which processes share the counts of rate limits; if unset, the database."
    )
    api_key_encryption_key: OptionalSecret = Field(
        None,
        description="Keys that encrypt users' secrets, comma-separated, each of at least 32 bytes; "
        "the first one encrypts, all of them decrypt.",
    )

    _problems: tuple[str, ...] = PrivateAttr(())

    @property
    def problems(self) -> tuple[str, ...]:
        """One line for each invalid variable; its setting has the default value."""
        return self._problems

    @field_validator("database_url")
    @classmethod
    def _async_driver(cls, value: str) -> str:
        return normalised_database_url(value).render_as_string(hide_password=False)

    @field_validator("clerk_issuer", "webhook_base_url", "llm_base_url", "otel_exporter_otlp_endpoint")
    @classmethod
    def _no_trailing_slash(cls, value: str | None) -> str | None:
        return value.rstrip("/") if value else value

    @property
    def is_production(self) -> bool:
        """Whether unsafe settings are rejected, logs are JSON, and only `bloxserver migrate` migrates the database."""
        return self.env == "production"

    @property
    def dev_bypass(self) -> bool:
        """Whether requests are authenticated as the development user: only in development without another sign-in."""
        return self.env == "development" and not any((self.clerk_issuer, self.oidc_issuer, self.auth))

    @property
    def limits_rates(self) -> bool:
        """Whether the rates of requests are limited."""
        return self.env in ("staging", "production") if self.rate_limits is None else self.rate_limits

    @property
    def public_url(self) -> str:
        """The public base URL of the API: that of webhooks without its last part."""
        return self.webhook_base_url.removesuffix("/webhooks")

    @property
    def uses_https(self) -> bool:
        """Whether responses have HSTS. Only in production: elsewhere the host may be localhost, which has no https."""
        return self.is_production and self.webhook_base_url.startswith("https://")

    @property
    def uses_sqlite(self) -> bool:
        return self.database_url.startswith("sqlite")

    @property
    def otlp_traces_endpoint(self) -> str | None:
        """The URL to which traces are sent; None if tracing is disabled."""
        base = self.otel_exporter_otlp_endpoint
        return self.otel_exporter_otlp_traces_endpoint or (f"{base}/v1/traces" if base else None)

    @property
    def encryption_keys(self) -> tuple[str, ...]:
        """The keys in `API_KEY_ENCRYPTION_KEY`, in order; empty if it is not set."""
        given = self.api_key_encryption_key
        return () if given is None else tuple(split_commas(given.get_secret_value()))

    @property
    def clerk_webhook_secrets(self) -> tuple[str, ...]:
        """The secrets in `CLERK_WEBHOOK_SECRET`; empty if it is not set."""
        given = self.clerk_webhook_secret
        return () if given is None else tuple(split_commas(given.get_secret_value()))

    @property
    def operator_secrets(self) -> list[tuple[str, str]]:
        """Pairs of the mark that replaces a secret of the operator, and the secret.

        Short secrets are omitted: other texts contain them by coincidence, and users could guess them by observing
        what is replaced.
        """
        values = {name.upper(): getattr(self, name) for name in type(self).model_fields}
        secrets = [(name, value.get_secret_value()) for name, value in values.items() if isinstance(value, SecretStr)]
        secrets += [("API_KEY_ENCRYPTION_KEY", key) for key in self.encryption_keys]
        secrets += [("CLERK_WEBHOOK_SECRET", secret) for secret in self.clerk_webhook_secrets]
        secrets.append(("DATABASE_URL", normalised_database_url(self.database_url).password or ""))
        return [(f"[setting {name}]", text) for name, text in secrets if len(text) >= MIN_OPERATOR_SECRET_LENGTH]

    def check_startup(self) -> None:
        """Raise `SettingsError` if a setting keeps this process from starting. The message names all such variables.

        It contains no values, except networks and names of hosts.
        """
        problems = [*self.problems]
        if self.heartbeat_timeout_seconds < 2 * self.heartbeat_interval_seconds:
            problems.append(
                "HEARTBEAT_TIMEOUT_SECONDS must be at least twice HEARTBEAT_INTERVAL_SECONDS: "
                "live workers would be declared dead"
            )
        problems += sign_in_problems(self)
        if self.is_production:
            problems += production_problems(self)
        if problems:
            raise SettingsError(problems)

    def warnings(self) -> list[str]:
        """Return a line for each setting that is unsafe in most installations of production."""
        return production_warnings(self) if self.is_production else []

    @classmethod
    def load(cls) -> Self:
        """Load the settings. An invalid setting has its default and a line in `problems`."""
        sources: dict[str, Any] = {}
        problems: tuple[str, ...] = ()
        try:
            _names_in_file()
        except UnicodeDecodeError:
            sources, problems = {"_env_file": None}, (".env: the file is not UTF-8 and was ignored",)
        try:
            settings = cls(**sources)
        except ValidationError as error:
            wrong = {str(item["loc"][0]): item["msg"] for item in error.errors(include_input=False)}
            defaults = {name: cls.model_fields[name].get_default() for name in wrong}
            problems += tuple(
                f"{name.upper()}: {text.removeprefix(VALUE_ERROR_PREFIX)}" for name, text in wrong.items()
            )
            settings = cls(**sources, **defaults)
        settings._problems = problems
        return settings


def misspelt_settings() -> list[str]:
    """Return a line for each variable in the environment or `.env` that is probably a misspelt setting.

    The lines contain no values.
    """
    given = {name.upper() for name in (*EnvSettingsSource(Settings).env_vars, *_names_in_file())}
    misspelt = find_misspelt(given, {name.upper() for name in Settings.model_fields})
    return [f"{name} is not a setting and has no effect; did you mean {meant}?" for name, meant in misspelt.items()]


def read_variable(name: str) -> str | None:
    """Return a variable of the environment or `.env` that a file of the operator names; None if it is empty."""
    given = os.environ.get(name)
    if given is None:
        given = DotEnvSettingsSource(Settings).env_vars.get(name.lower())
    return given or None


def environment_without_settings() -> dict[str, str]:
    """Return the environment for processes that run work of users: what programs need to run, and no secrets."""
    return {name: os.environ[name] for name in SYSTEM_VARIABLES if name in os.environ}


def _names_in_file() -> list[str]:
    """Return the names of the variables in `.env`. Raises `UnicodeDecodeError`."""
    return list(DotEnvSettingsSource(Settings).env_vars)


@lru_cache
def get_settings() -> Settings:
    """Return the settings of this process, which are loaded once."""
    return Settings.load()
