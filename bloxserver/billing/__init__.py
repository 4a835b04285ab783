"""Billing with Stripe. See docs/billing.md."""
