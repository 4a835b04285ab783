"""Identities of users."""

RESERVED = ("local:", "oidc:", "deleted:")
"""The beginnings of identities of users whom Clerk does not know."""
