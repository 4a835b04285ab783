"""BloxServer: a self-hosted control plane for AI-agent workflows."""

__version__ = "0.1.0"
