"""Groups of settings, which `Settings` consists of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

from bloxserver.setting_types import CommaSeparated, OptionalSecret, OptionalText, SigningSecrets, blank_as_none


class SignInSettings(BaseModel):
    """How users sign in, and where their accounts come from."""

    auth: Annotated[Literal["keys"] | None, BeforeValidator(blank_as_none)] = Field(
        None, description="`keys`: users sign in with API keys only, which the operator creates."
    )
    oidc_issuer: OptionalText = Field(
        None,
        max_length=512,
        description="Issuer of OpenID Connect tokens, for example https://sso.example.com/realms/staff.",
    )
    oidc_audience: OptionalText = Field(None, description="Audience that these tokens must have.")
    oidc_email_claim: str = Field("email", description="Claim with the email address of a new user.")
    oidc_name_claim: str = Field("name", description="Claim with the name of a new user.")
    oidc_picture_claim: str = Field("picture", description="Claim with the address of a new user's picture.")
    clerk_issuer: OptionalText = Field(
        None, description="Issuer of the Clerk tokens, for example https://x.clerk.accounts.dev."
    )
    clerk_audience: OptionalText = Field(None, description="Audience that tokens must have; unset accepts any.")
    clerk_authorized_parties: CommaSeparated = Field(
        (), description="Accepted origins of tokens (`azp`), comma-separated; empty accepts any."
    )
    clerk_require_azp: bool = Field(False, description="Refuse tokens without `azp`.")
    clerk_webhook_secret: SigningSecrets = Field(
        None,
        description="Signing secret of Clerk's webhook, whsec_…; during a rotation two of them, comma-separated. If "
        "unset, POST /webhooks/clerk is 404.",
    )
    user_deletion: Literal["purge", "anonymise"] = Field(
        "purge",
        description="What becomes of a deleted user: `purge` deletes all rows, `anonymise` keeps the usage and a row "
        "without personal data.",
    )


class LanguageModelSettings(BaseModel):
    """Servers of language models."""

    llm_provider: Annotated[Literal["openai", "anthropic"] | None, BeforeValidator(blank_as_none)] = Field(
        None, description="API of the language model; if unset, derived from LLM_BASE_URL and LLM_MODEL."
    )
    llm_base_url: OptionalText = Field(
        None, description="Base URL of an OpenAI-compatible server or of Anthropic; if unset, the provider's default."
    )
    llm_api_key: OptionalSecret = Field(None, description="API key of the language model.")
    llm_model: OptionalText = Field(None, description="Default model for agents.")
    llm_timeout_seconds: Annotated[Annotated[float, Field(gt=0, le=3_600)] | None, BeforeValidator(blank_as_none)] = (
        Field(
            None,
            description="Maximum wait for one response of a language model; if unset, 120 seconds, or 60 for one of at "
            "most 2,000 tokens.",
        )
    )
    llm_providers: OptionalText = Field(
        None, description="YAML file with several providers of language models, instead of the settings before."
    )
    llm_cache_bytes: int = Field(
        64 * 1024 * 1024,
        ge=0,
        description="Memory of a process for responses that are kept for equal requests; 0 keeps none.",
    )
    llm_cache_shared: bool = Field(
        False, description="Whether users share these responses; otherwise each user has their own."
    )
    llm_daily_max_usd: Annotated[Annotated[float, Field(gt=0)] | None, BeforeValidator(blank_as_none)] = Field(
        None, description="Budget for the calls of all users with these keys on a day in UTC; if unset, unlimited."
    )
    anthropic_api_key: OptionalSecret = Field(None, description="API key of Anthropic, for models named claude….")
    openai_api_key: OptionalSecret = Field(None, description="API key of OpenAI, for its models.")
    xai_api_key: OptionalSecret = Field(None, description="API key of xAI, for models named grok….")
    together_api_key: OptionalSecret = Field(
        None, description="API key of Together, for models with a slash in the name."
    )


class MailSettings(BaseModel):
    """The mail server."""

    smtp_host: OptionalText = Field(None, description="Mail server for email.send and failure notifications.")
    smtp_port: int = Field(587, ge=1, le=65535, description="Port of the mail server.")
    smtp_security: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="Encryption of the connection to the mail server."
    )
    smtp_username: OptionalText = Field(None, description="User name for the mail server.")
    smtp_password: OptionalSecret = Field(None, description="Password for the mail server.")
    smtp_from: OptionalText = Field(None, description="Sender of emails through the mail server.")
    smtp_senders: Literal["fixed", "name", "domain"] = Field(
        "fixed",
        description="Which `from` of users the mail server accepts: `fixed` is SMTP_FROM only, `name` is its address "
        "with any display name, `domain` is any address of its domain.",
    )
    email_templates_dir: OptionalText = Field(
        None, description="Directory with templates of emails to users, which replace those of the same names."
    )


class BillingSettings(BaseModel):
    """The account at Stripe."""

    stripe_secret_key: OptionalSecret = Field(None, description="Secret key of the Stripe account.")
    stripe_webhook_secret: OptionalSecret = Field(
        None, description="Signing secret of the Stripe webhook; two, comma-separated, during a rotation."
    )
    stripe_api_base: OptionalText = Field(None, description="URL of Stripe's API, if it is not https://api.stripe.com.")
    billing_success_url: str = Field(
        "http://localhost:3000/billing?checkout=success", description="Where a user returns after a checkout."
    )
    billing_cancel_url: str = Field(
        "http://localhost:3000/billing", description="Where a user returns from a cancelled checkout and the portal."
    )
