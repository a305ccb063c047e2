"""twisted_mta: a multi-role mail server on Twisted."""

__version__ = "0.1.0"
