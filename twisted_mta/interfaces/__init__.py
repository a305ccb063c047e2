"""Every seam of the server, as a zope.interface with its contract.

An implementation runs the contract suite of its interface (`twisted_mta.testing.contracts`), so what is
promised here is tested for each. Methods that return an Awaitable may be `async def` or return a Deferred;
they are called in the reactor's thread, and never block it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from twisted_mta.interfaces.delivery import Consignment, Foreseen, IBatchDelivery, IDelivery, IForesight
from twisted_mta.interfaces.dns import IMailResolver, Proof
from twisted_mta.interfaces.mailboxes import (
    IMailbox,
    IMailboxes,
    IMailboxStore,
    MailboxChanges,
    MailboxError,
    MailboxExists,
    MailboxInfo,
    MailboxStatus,
    MessageEntry,
    NoSuchMailbox,
)
from twisted_mta.interfaces.people import (
    Account,
    AuthenticationUnavailable,
    Client,
    IAuthenticator,
    IDirectory,
)
from twisted_mta.interfaces.queue import (
    DamagedBody,
    IBodyWriter,
    IQueue,
    IQueueHistory,
    IQueueStore,
    IStoredBody,
    StoreFull,
    Update,
)
from twisted_mta.interfaces.receiving import IMessageSink, IPolicyCheck, IReception, Peer

__all__ = [
    "Account",
    "AuthenticationUnavailable",
    "Client",
    "Consignment",
    "DamagedBody",
    "Foreseen",
    "IAuthenticator",
    "IBatchDelivery",
    "IBodyWriter",
    "IDelivery",
    "IDirectory",
    "IForesight",
    "IMailResolver",
    "IMailbox",
    "IMailboxStore",
    "IMailboxes",
    "IMessageSink",
    "IPolicyCheck",
    "IQueue",
    "IQueueHistory",
    "IQueueStore",
    "IReception",
    "IStoredBody",
    "MailboxChanges",
    "MailboxError",
    "MailboxExists",
    "MailboxInfo",
    "MailboxStatus",
    "MessageEntry",
    "NoSuchMailbox",
    "Parts",
    "Peer",
    "Proof",
    "StoreFull",
    "Update",
]

#: A long answer of a session in parts (see core.effects.Core.answer).
Parts = AsyncIterator[object]
