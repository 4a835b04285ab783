"""Emails to users about their subscription and their usage: templates, and the outbox from which workers send them."""
