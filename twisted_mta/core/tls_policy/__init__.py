"""Which TLS a mail host must offer, and prove, before it gets mail: MTA-STS (RFC 8461), DANE (RFC 7672), local pins."""
