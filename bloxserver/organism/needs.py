"""What a definition needs of the installation and of its owner. Known even where the definition has errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from bloxserver.organism.problems import Path
from bloxserver.organism.yaml_source import Place


@dataclass(frozen=True, slots=True)
class _Need:
    place: Place
    """Where it is written."""
    path: Path


@dataclass(frozen=True, slots=True)
class SecretNeed(_Need):
    """A secret of the owner."""

    name: str


@dataclass(frozen=True, slots=True)
class ModelNeed(_Need):
    """A language model; null: the one that the settings name."""

    listener: str
    model: str | None


@dataclass(frozen=True, slots=True)
class MailNeed(_Need):
    """The installation's mail server. `sender` is the address to send from; null: the one that the settings name."""

    sender: str | None


@dataclass(frozen=True, slots=True)
class AddressNeed(_Need):
    """A server that must be reachable. The URL may hold placeholders."""

    url: str


Need: TypeAlias = SecretNeed | ModelNeed | MailNeed | AddressNeed
