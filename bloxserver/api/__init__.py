"""The HTTP API. `api.models` re-exports `bloxserver.models` for compatibility."""

from bloxserver.gc_tuning import collect_less_often

collect_less_often()  # before the imports of the API, which take 10 % longer otherwise
