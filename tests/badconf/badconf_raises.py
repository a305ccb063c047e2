"""Fails when it is imported."""

raise RuntimeError("the database is not configured")
