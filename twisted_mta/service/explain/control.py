"""The `explain` command of the control socket. Arguments: "recipient", and any of "sender" ("" is the null one), "ip", "helo",
"login", "size" (octets), "role", "tls" (true), "message" (the text of one, for its header). Nothing is sent or changed.

The answer: {"accepted": whether this server would take it, "reply": the last reply of the session, "places": the Maildirs,
files and commands that would get a copy, "remote": {address: destination}, "failures": [{"address", "reply" that ends the first
attempt}], "complete": whether everything was followed, "warnings": [text], "steps": trees of `core.explanation`}.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from twisted_mta.config.schema import Config, Role
from twisted_mta.core.address import Address, AddressError
from twisted_mta.service.control import ControlError, Handler
from twisted_mta.service.explain.explainer import Explainer, Question

#: Roles that take mail.
ROLES = (Role.MX, Role.SUBMISSION, Role.SUBMISSIONS, Role.LMTP)
_MAX_TEXT = 1000


def explain_handlers(explainer: Explainer) -> Mapping[str, Handler]:
    """The handler."""

    async def explain(arguments: Mapping[str, Any]) -> Any:
        return await explainer.explain(read_question(arguments, explainer.config()))

    return {"explain": explain}


def read_question(arguments: Mapping[str, Any], config: Config) -> Question:
    """The question in the arguments of the command. Raises ControlError."""
    login = _text(arguments, "login")
    role = _role(_text(arguments, "role"), config, login)
    recipient = _address(_text(arguments, "recipient"), "recipient", config)
    size = arguments.get("size")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
        raise ControlError("size is a number of octets")
    message = arguments.get("message", "")
    if not isinstance(message, str):
        raise ControlError("message must be text")
    return Question(
        recipient=recipient,
        sender=_sender(arguments, config, login),
        role=role,
        ip=_ip(_text(arguments, "ip")),
        helo=_text(arguments, "helo") or "client.example",
        login=login,
        size=size,
        tls=arguments.get("tls") is True,
        message=message.encode("utf-8", "surrogateescape"),
    )


def _text(arguments: Mapping[str, Any], name: str) -> str:
    value = arguments.get(name, "")
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not value.isprintable():
        raise ControlError(f"{name} must be text of one line")
    return value


def _address(text: str, name: str, config: Config) -> Address:
    """An address; a bare name is one of the first domain."""
    try:
        return Address.parse(text if "@" in text else f"{text}@{config.domains[0]}")
    except AddressError as error:
        raise ControlError(f"{name} {text!r} is no address: {error}") from None


def _sender(arguments: Mapping[str, Any], config: Config, login: str) -> Address | None:
    if arguments.get("sender") is None:
        return _address(login, "login", config) if login else Address("somebody", "example.com")
    text = _text(arguments, "sender")
    return _address(text, "sender", config) if text not in ("", "<>") else None


def _role(text: str, config: Config, login: str) -> Role:
    """The role asked for; else the one for such clients."""
    if text:
        if text not in ROLES:
            raise ControlError(f"role is one of {', '.join(ROLES)}")
        return Role(text)
    served = [listen.role for listen in config.listen]
    wanted = (Role.SUBMISSIONS, Role.SUBMISSION) if login else (Role.MX, *ROLES)
    return next((role for role in wanted if role in served), wanted[0])


def _ip(text: str) -> str:
    try:
        return str(ip_address(text)) if text else ""
    except ValueError:
        raise ControlError(f"{text!r} is no IP address") from None
