"""Talks to language models."""

from __future__ import annotations


class LanguageModels: ...
