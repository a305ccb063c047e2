"""Fakes and contract suites for those who extend the server."""
