"""All routes. Those in `PUBLIC` need no sign-in; those in `AUTHENTICATED` answer 401 without one."""

from bloxserver.api.routes import executions, flows, health, triggers, users, webhooks

PUBLIC = [health.router, webhooks.router]
AUTHENTICATED = [users.router, flows.router, triggers.router, executions.router]

__all__ = ["AUTHENTICATED", "PUBLIC"]
