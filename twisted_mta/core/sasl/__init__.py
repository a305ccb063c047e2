"""SASL, server side, as SMTP, POP3 and IMAP use it: RFC 4422; PLAIN (RFC 4616), LOGIN (no RFC) and SCRAM (RFC 5802, 7677).

`base` has what mechanisms ask for, `plain` and `scram` the mechanisms, `exchange` the dialog that the three protocols
share: a core makes an `Offer`, begins an `Exchange` from it and carries out its steps.
"""

from twisted_mta.core.sasl.base import (
    Challenge,
    Claim,
    Credentials,
    Lookup,
    Mechanism,
    Proof,
    SaslError,
    Step,
    decode_base64,
    encode_base64,
)
from twisted_mta.core.sasl.exchange import MECHANISMS, Cancelled, Done, Exchange, Offer
from twisted_mta.core.sasl.scram import ScramKeys, Secret

__all__ = [
    "MECHANISMS",
    "Cancelled",
    "Challenge",
    "Claim",
    "Credentials",
    "Done",
    "Exchange",
    "Lookup",
    "Mechanism",
    "Offer",
    "Proof",
    "SaslError",
    "ScramKeys",
    "Secret",
    "Step",
    "decode_base64",
    "encode_base64",
]
