"""What parts take of a configuration, as they take it."""

from __future__ import annotations

from twisted_mta.config.schema import Config, Dns, Queue, Route
from twisted_mta.core.smtp.client import Login
from twisted_mta.net.dns import system_servers
from twisted_mta.net.dns_exchange import Server
from twisted_mta.net.tls import ServerTls
from twisted_mta.store.queue.history import HistoryRules


def tls_options(config: Config) -> ServerTls | None:
    """The context for the servers; None without a certificate. Raises TlsError."""
    tls = config.tls
    if tls.certificate is None or tls.key is None:
        return None
    return ServerTls(
        tls.certificate, tls.key, [(pair.certificate, pair.key) for pair in tls.sni], tls.minimum
    )


def history_rules(queue: Queue) -> HistoryRules:
    """What is remembered of messages."""
    return HistoryRules(keep=queue.history, limit=queue.history_limit, transcripts=queue.transcripts)


def dns_servers(dns: Dns) -> tuple[Server, ...]:
    """The configured name servers, else those of the system."""
    return tuple(Server.parse(text) for text in dns.servers) or system_servers()


def smarthost_login(smarthost: Route | None) -> Login | None:
    """What to log in with at the smarthost. Raises OSError or ValueError where the password can't be read."""
    if smarthost is None or not smarthost.username or smarthost.password_file is None:
        return None
    lines = smarthost.password_file.read_text(encoding="utf-8").splitlines()
    password = lines[0] if lines else ""
    return Login(smarthost.username, password)
