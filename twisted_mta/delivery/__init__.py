"""One module a transport: local, smtp, list."""
