"""The `mta` command."""
