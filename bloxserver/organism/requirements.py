"""Requirements of a definition on the installation and on the flow's owner. Known even if the definition has errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import JsonValue

from bloxserver.organism.problems import Path
from bloxserver.organism.yaml_source import Place


@dataclass(frozen=True, slots=True)
class _Requirement:
    place: Place
    """Where the requirement arises in the text."""
    path: Path


@dataclass(frozen=True, slots=True)
class SecretRequirement(_Requirement):
    """The owner must have stored this secret."""

    name: str


@dataclass(frozen=True, slots=True)
class SigningKeyRequirement(_Requirement):
    """The installation must have a key that signs the URL of this listener."""

    listener: str


@dataclass(frozen=True, slots=True)
class ModelRequirement(_Requirement):
    """The installation must have a language model. Null is the model of the settings."""

    listener: str
    model: str | None


@dataclass(frozen=True, slots=True)
class PriceRequirement(_Requirement):
    """The price of an agent's model should be known. Null is the model of the settings."""

    listener: str
    model: str | None


@dataclass(frozen=True, slots=True)
class MailRequirement(_Requirement):
    """The installation must have a mail server. `sender` is the sender's address; null is that of the settings."""

    sender: str | None


@dataclass(frozen=True, slots=True)
class AddressRequirement(_Requirement):
    """The installation must allow requests to this URL, which may contain placeholders."""

    url: str


@dataclass(frozen=True, slots=True)
class ValidityRequirement(_Requirement):
    """A value that names secrets must be valid with the values of these secrets."""

    value: JsonValue
    validate: Callable[[Any], object]
    """Raises `ValueError`. Placeholders that are left in the value are valid."""


@dataclass(frozen=True, slots=True)
class FlowRequirement(_Requirement):
    """The owner must have one flow of this id or name."""

    flow: str
    repeats: bool
    """Whether the call would be made again if the flow called itself: then it never ends."""
    has_target: bool
    """Whether this definition has the listener that the call names."""


Requirement: TypeAlias = (
    SecretRequirement
    | SigningKeyRequirement
    | ModelRequirement
    | PriceRequirement
    | MailRequirement
    | AddressRequirement
    | ValidityRequirement
    | FlowRequirement
)
