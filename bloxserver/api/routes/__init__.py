"""All routes. Those in `PUBLIC` need no authentication; those in `AUTHENTICATED` respond with 401 without it.

Those in `OPENAI` do too, and are outside `/api/v1`.
Those in `DOCUMENTATION` need none either, and exist only with `ENABLE_DOCS`.
"""

from bloxserver.api.routes import (
    all_executions,
    api_keys,
    audit,
    billing,
    canvas,
    clerk,
    deliveries,
    documentation,
    executions,
    flow_vars,
    flows,
    health,
    language_models,
    llm_keys,
    llm_usage,
    metrics,
    organisms,
    resumptions,
    secrets,
    series,
    signing_secrets,
    stripe_events,
    triggers,
    usage,
    users,
    versions,
    webhooks,
)

PUBLIC = [health.router, metrics.router, clerk.router, stripe_events.router, webhooks.router, resumptions.router]
DOCUMENTATION = [documentation.router]
OPENAI = [language_models.router]
AUTHENTICATED = [
    users.router,
    usage.router,
    flows.router,
    flow_vars.router,
    versions.router,
    triggers.router,
    signing_secrets.router,
    deliveries.router,
    executions.router,
    all_executions.router,
    series.router,
    secrets.router,
    llm_keys.router,
    api_keys.router,
    audit.router,
    billing.router,
    llm_usage.router,
    organisms.router,
    canvas.router,
]

__all__ = ["AUTHENTICATED", "DOCUMENTATION", "OPENAI", "PUBLIC"]
