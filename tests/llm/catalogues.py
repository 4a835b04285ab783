"""Files for `LLM_PROVIDERS`, and a clock."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from bloxserver.clock import now
from bloxserver.settings import Settings

KEY = "sk-canary-key-4711"


def providers(urls: Mapping[str, str], **values: Any) -> dict[str, Any]:
    """Providers of the model `parrot-1`, with these URLs, in this order of priority."""
    return {
        name: {"kind": "openai", "base_url": url, "models": ["parrot-1"], "priority": number, **values}
        for number, (name, url) in enumerate(urls.items())
    }


def settings_of(folder: Path, document: Mapping[str, Any], **given: Any) -> Settings:
    """Settings with a file of providers. JSON is YAML too."""
    file = folder / "providers.yaml"
    file.write_text(json.dumps(document))
    return Settings(**({"llm_providers": str(file), "llm_model": None} | given))


class Clock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.moment = now()

    def __call__(self) -> datetime:
        return self.moment

    def advance(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)
