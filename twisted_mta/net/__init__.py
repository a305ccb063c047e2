"""Twisted adapters: protocols, TLS contexts, the DNS resolver."""
