"""The API under load, compared with a bare server on the same database."""
