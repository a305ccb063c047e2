"""POP3: the server core."""
