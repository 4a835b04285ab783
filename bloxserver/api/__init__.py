"""The HTTP API. `api.models` keeps its path for compatibility but is the bottom layer: see DEVELOPMENT.md."""
