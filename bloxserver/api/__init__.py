"""The HTTP API. `api.models` re-exports `bloxserver.models` for compatibility."""
