"""Measures a user's requests and runs while another user attacks the server."""
