"""The SMTP protocol cores."""
