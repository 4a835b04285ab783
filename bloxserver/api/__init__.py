"""The HTTP API. `api.models` re-exports `bloxserver.models` for compatibility."""

from bloxserver.gc_tuning import prepare_for_imports

prepare_for_imports()  # which take 10 % longer otherwise
