"""What makes a post out of a message to a mailing list: who may post, what is kept away, which header fields it gets.

Addresses of a list NAME@DOMAIN: NAME-owner reaches its owner, and so do NAME-request (RFC 2142 §6) and NAME-bounces.
Posts leave with NAME-bounces as their sender (RFC 5321 §3.9.2), so that the owner, and not the author, hears
of members who can't be reached; with `verp` the sender names the member too, so that a bounce tells by the address that it
comes to who bounced, whatever it says itself: NAME-bounces+carol=example.net for carol@example.net.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Container
from typing import Protocol
from urllib.parse import quote

from twisted_mta.core.address import MAX_LOCAL_PART, Address
from twisted_mta.core.message import fields
from twisted_mta.core.replies import Reply
from twisted_mta.core.values import value

#: RFC 2919 §2: octets of a list identifier.
MAX_LIST_ID = 255
#: Characters of a description in List-Id; the rest is cut off.
MAX_DESCRIPTION = 200

_OWNER_SUFFIXES = ("owner", "bounces", "request")
# RFC 5322 §3.2.3 atext and the dot: what a list identifier may consist of.
_NOT_DOT_ATOM = re.compile(r"[^A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+")
_DOTS = re.compile(r"\.{2,}")
_ANGLE = re.compile(rb"<([^<>]*)>")
_KEYWORD = re.compile(rb"[A-Za-z0-9-]+")
_COMMENT = re.compile(rb"\([^()]*\)")
_WHITE = re.compile(rb"\s+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
# Octets of text in one encoded-word: 75 in all (RFC 2047 §2) less "=?utf-8?b?" and "?=" is 63, of base64 60.
_WORD = 45


class MailingList(Protocol):
    """The settings of a list, as `twisted_mta.config.schema.MailingList` has them."""

    @property
    def address(self) -> Address: ...
    @property
    def members(self) -> tuple[Address, ...]: ...
    @property
    def owner(self) -> Address: ...
    @property
    def description(self) -> str: ...
    @property
    def members_only(self) -> bool: ...
    @property
    def verp(self) -> bool: ...


def owner_addresses(address: Address) -> tuple[Address, ...]:
    """NAME-owner, NAME-bounces and NAME-request of a list."""
    return tuple(address.with_local(f"{address.local}-{suffix}") for suffix in _OWNER_SUFFIXES)


def bounce_address(address: Address) -> Address:
    """The sender of a list's posts: NAME-bounces."""
    return address.with_local(f"{address.local}-bounces")


def member_bounce_address(address: Address, member: Address) -> Address:
    """The sender of one member's copy: NAME-bounces+LOCAL=DOMAIN.

    Only NAME-bounces where that is no address that every host takes: too long (RFC 5321 §4.5.3.1.1), not ASCII (which would
    need SMTPUTF8 all the way back), or in need of quotes.
    """
    plain = bounce_address(address)
    own = plain.with_local(f"{plain.local}+{member.local}={member.domain}")
    fits = len(own.local) <= MAX_LOCAL_PART and own.is_ascii and str(own)[0] != '"'
    return own if fits else plain


def bounced_member(address: Address) -> tuple[Address, Address] | None:
    """NAME-bounces and the member of an address that `member_bounce_address` makes; None for any other.

    Whether there is such a list, or member, is not looked at: anybody can write to such an address.
    """
    name, mark, encoded = address.local.partition("-bounces+")
    local, equals, domain = encoded.rpartition("=")  # a domain has none, a local part may have
    if not (name and mark and local and equals and domain):
        return None
    return address.with_local(f"{name}-bounces"), Address(local, domain.lower())


def check_address(address: Address) -> str:
    """Why a list can't have this address; "" if it can."""
    longest = max(len(owner.local.encode()) for owner in owner_addresses(address))
    if longest > MAX_LOCAL_PART:  # RFC 5321 §4.5.3.1.1
        return (
            f"{address} is too long for a list: {address.local}-bounces must fit into {MAX_LOCAL_PART} octets"
        )
    if len(list_id(address)) > MAX_LIST_ID:
        return f"{address} is too long for a list: its List-Id would have more than {MAX_LIST_ID} octets"
    return ""


# --- Whether to distribute -----------------------------------------------------------------------


@value
class Distribute:
    """Send it to the members. `present` are the names of header fields that the message has, lower-case."""

    present: frozenset[bytes]


@value
class ToOwner:
    """Not for the members, but the owner shall see it. `why` is for the log."""

    why: str


@value
class Refuse:
    """Send it back."""

    reply: Reply


Verdict = Distribute | ToOwner | Refuse


def refuse_sender(settings: MailingList, sender: Address | None, posters: Container[str]) -> Reply | None:
    """Whether a sender must not post, as far as the envelope tells: None, or the reply, fit for RCPT too.

    `posters` are the folded addresses of members. The null sender passes: its mail goes to the owner.
    """
    if sender is None or not settings.members_only or sender.folded in posters:
        return None
    text = f"only members may post to {settings.address}; write to {_owner(settings)} to become one"
    return Reply(550, "5.7.2", text)  # RFC 3463 §3.8: mailing list expansion prohibited


def judge(settings: MailingList, sender: Address | None, header: bytes, posters: Container[str]) -> Verdict:
    """What to do with a message to the posting address. `header` is its header section (its head will do)."""
    present: set[bytes] = set()
    automatic = ""
    # RFC 2919 §6: identifiers ignore case; what stands outside of the brackets is not compared.
    ours = list_id(settings.address).lower().encode()
    folded = str(settings.address).casefold()
    for field in fields(header):
        present.add(field.key)
        if (field.key == b"list-id" and _bracketed(field.value).lower() == ours) or (
            field.key == b"delivered-to" and field.value.decode("utf-8", "replace").casefold() == folded
        ):
            text = f"mail loop: this message was already sent through {settings.address}"
            return Refuse(Reply(554, "5.4.6", text))  # RFC 3463 §3.5
        if field.key == b"auto-submitted" and _is_automatic(field.value):
            automatic = "it was sent by a program (Auto-Submitted)"
    if sender is None:
        automatic = "it has the null sender"
    if automatic:
        return ToOwner(automatic)
    refusal = refuse_sender(settings, sender, posters)
    return Refuse(refusal) if refusal else Distribute(frozenset(present))


def _is_automatic(value: bytes) -> bool:
    """Whether it answers something: RFC 3834 §5.1, a keyword, perhaps behind a comment, and parameters.

    What a program sends of itself (a nightly build's report) may go to a list; what can't be read may not.
    """
    match = _KEYWORD.match(_COMMENT.sub(b"", value[:1000]).strip())
    return match is None or match.group().lower() not in (b"no", b"auto-generated")  # RFC 3834 §5.2


def _bracketed(value: bytes) -> bytes:
    """The identifier of a List-Id; white space in it is ignored (RFC 2919 §3)."""
    found = _ANGLE.findall(value)
    return _WHITE.sub(b"", found[-1]) if found else b""


# --- Header fields -------------------------------------------------------------------------------


def list_id(address: Address) -> str:
    """The identifier "team.example.test" of team@example.test, RFC 2919 §2. It must never change, nor must this."""
    text = _NOT_DOT_ATOM.sub("-", f"{address.local}.{_ascii(address.domain)}")
    return _DOTS.sub(".", text).strip(".")


def list_fields(settings: MailingList, present: Container[bytes] = frozenset()) -> bytes:
    """The header fields that go on top of a post, CRLF line ends.

    None is added that is `present`: there must be only one of each (RFC 2919 §3, RFC 2369 §3), and a list that
    is a member of another list leaves the other's alone (RFC 2919 §7, RFC 2369 §4). Delivered-To is ours in any case, and
    what breaks loops.
    """
    address = settings.address
    request = address.with_local(f"{address.local}-request")
    ours = (
        ("List-Id", f"{_phrase(settings.description)}<{list_id(address)}>"),
        ("List-Post", f"<{_mailto(address)}>"),
        ("List-Owner", f"<{_mailto(_owner(settings))}>"),
        ("List-Unsubscribe", f"<{_mailto(request)}?subject=unsubscribe>"),
        ("Precedence", "list"),
    )
    lines = [delivered_to(settings)]
    lines += [f"{name}: {value}\r\n".encode() for name, value in ours if name.lower().encode() not in present]
    return b"".join(lines)


def delivered_to(settings: MailingList) -> bytes:
    """The field by which a list knows its own posts again, also where another list's List-Id stays."""
    return f"Delivered-To: {settings.address}\r\n".encode()


def _owner(settings: MailingList) -> Address:
    return settings.address.with_local(f"{settings.address.local}-owner")


def _mailto(address: Address) -> str:
    """RFC 2369 §2 allows only characters that are safe in a URL."""
    return f"mailto:{quote(address.local, safe=_MAILTO_SAFE)}@{_ascii(address.domain)}"


_MAILTO_SAFE = "!$'*+-._~"


def _ascii(domain: str) -> str:
    """A domain as DNS and header fields have it; one that IDNA can't express loses what it can't."""
    try:
        return domain if domain.isascii() else domain.encode("idna").decode()
    except UnicodeError:
        return domain.encode("ascii", "replace").decode().replace("?", "-")


def _phrase(description: str) -> str:
    """A description as an RFC 5322 phrase with a line end behind it, or ""."""
    text = _CONTROL.sub(" ", description).strip()[:MAX_DESCRIPTION]
    if not text:
        return ""
    if text.isascii():
        escaped = re.sub(r'([\\"])', r"\\\1", text)
        return f'"{escaped}"\r\n '
    return "".join(f"=?utf-8?b?{base64.b64encode(word).decode()}?=\r\n " for word in _words(text))


def _words(text: str) -> list[bytes]:
    """UTF-8 in pieces of at most _WORD octets, none of which cuts a character (RFC 2047 §5)."""
    words = [b""]
    for character in text:
        octets = character.encode()
        if len(words[-1]) + len(octets) > _WORD:
            words.append(b"")
        words[-1] += octets
    return words
