"""Sends mail."""

from __future__ import annotations


class Mailer: ...
