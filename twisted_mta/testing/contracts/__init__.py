"""One test suite an interface: every implementation runs it."""
