"""What holds between keys: checks over a whole configuration, without a look at any file."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from twisted_mta.config.domain_checks import check_domains
from twisted_mta.config.endpoints import split_endpoint
from twisted_mta.config.errors import quote
from twisted_mta.config.fields import Reading
from twisted_mta.config.lines import join_key
from twisted_mta.config.schema import Config, MailingList, Rates, Role, Route
from twisted_mta.core.lists import check_address
from twisted_mta.core.tls_policy.decision import Require

#: The most iterations of SCRAM that Cyrus SASL computes for a client.
_CYRUS_ITERATIONS = 65_536


def check(config: Config, reading: Reading) -> None:
    """Note everything that contradicts something else. Keys that are already known to be wrong are left alone."""
    _check_submission(config, reading)
    _check_domains(config, reading)
    check_domains(config, reading)
    _check_listen(config, reading)
    _check_tls(config, reading)
    _check_accounts(config, reading)
    _check_lists(config, reading)
    _check_routes(config, reading)
    _check_queue(config, reading)
    _check_commands(config, reading)
    _check_forward(config, reading)
    _check_rules(config, reading)


def _check_domains(config: Config, reading: Reading) -> None:
    seen: dict[str, int] = {}
    if reading.is_bad("domains"):
        return  # entries that were left out would shift the numbers
    for number, domain in enumerate(config.domains, 1):
        if domain in seen:
            reading.problem(f"domains[{number}]", f"{quote(domain)} is listed twice", warning=True)
        seen[domain] = number
    postmaster = config.postmaster
    if not reading.is_bad("postmaster") and not postmaster.is_literal and "." not in postmaster.domain:
        reading.problem("postmaster", f"{quote(str(postmaster))} has no full domain", warning=True)


def _check_forward(config: Config, reading: Reading) -> None:
    domain = config.forward.srs_domain
    if domain and domain not in config.own_domains and not reading.is_bad("domains", "forward.srs_domain"):
        reading.problem(
            "forward.srs_domain", f"{quote(domain)} is not one of `domains`: no bounce would be taken there"
        )


def _check_rules(config: Config, reading: Reading) -> None:
    address = config.rules.address
    if address is None or reading.is_bad("domains", "rules.address"):
        return
    if address.domain not in config.own_domains:
        reading.problem(
            "rules.address",
            f"{quote(address.domain)} is not one of `domains`: mail to {address} would go elsewhere",
        )


def _check_listen(config: Config, reading: Reading) -> None:
    if reading.is_bad("listen"):
        return
    if not config.listen:
        reading.problem("listen", "the array is empty: the server would do nothing")
    seen: list[tuple[str, str, str]] = []
    for number, listen in enumerate(config.listen, 1):
        key = f"listen[{number}]"
        if listen.role is not Role.MX and config.tls.certificate is None and not reading.is_bad("tls"):
            why = "begins with TLS" if listen.role.implicit_tls else "lets nobody log in without TLS"
            reading.problem(f"{key}.role", f'"{listen.role}" {why}: it needs [tls] with certificate and key')
        _check_proxy(config, number, reading)
        place = _place(listen.endpoint)
        for other, known in enumerate(seen, 1):
            if _same_place(place, known):
                reading.problem(
                    f"{key}.endpoint",
                    f"{quote(listen.endpoint)} is the same as, or part of, that of listen[{other}]",
                )
        seen.append(place)


def _check_proxy(config: Config, number: int, reading: Reading) -> None:
    listen, key = config.listen[number - 1], f"listen[{number}]"
    is_unix = split_endpoint(listen.endpoint)[0] == "unix"
    if listen.proxy_networks and not listen.proxy:
        reading.problem(f"{key}.proxy_networks", "without proxy = true it means nothing")
    if listen.proxy and not listen.proxy_networks and not is_unix:
        reading.problem(
            f"{key}.proxy", 'it needs proxy_networks: where the proxies connect from, such as ["192.0.2.10"]'
        )
    for relay in config.relay.networks:
        for network in listen.proxy_networks:
            if relay.version == network.version and relay.overlaps(network):
                reading.problem(
                    f"{key}.proxy_networks",
                    f"{quote(str(network))} overlaps relay.networks: connections for which the proxy names no client "
                    "could relay",
                    warning=True,
                )


def _place(endpoint: str) -> tuple[str, str, str]:
    """(kind, interface, port or path) of an endpoint string."""
    kind, arguments, options = split_endpoint(endpoint)
    if kind == "systemd":
        return kind, "", options.get("name", "") or options.get("index", "")
    first = arguments[0] if arguments else options.get("port", options.get("address", ""))
    interface = options.get("interface", "")
    return kind, str(ipaddress.ip_address(interface)) if interface else "", first.lstrip("0") or "0"


def _same_place(one: tuple[str, str, str], other: tuple[str, str, str]) -> bool:
    if one[0] != other[0] or one[2] != other[2] or (one[0].startswith("tcp") and one[2] == "0"):
        return False
    return one[1] == other[1] or not {"", "0.0.0.0", "::"}.isdisjoint((one[1], other[1]))  # noqa: S104


def _check_tls(config: Config, reading: Reading) -> None:
    if reading.is_bad("tls"):
        return
    given = config.tls.certificate, config.tls.key
    if (given[0] is None) != (given[1] is None):
        missing = "certificate" if given[0] is None else "key"
        reading.problem("tls", f'"{missing}" is missing: TLS needs both, certificate and key')
    if config.tls.sni and given == (None, None):
        reading.problem("tls.sni[1]", "[tls] needs a certificate and key of its own, for all other clients")


def _check_accounts(config: Config, reading: Reading) -> None:
    if config.accounts.scram != "never" and config.accounts.scram_iterations > _CYRUS_ITERATIONS:
        reading.problem(
            "accounts.scram_iterations",
            f"programs that use Cyrus SASL (mbsync, Postfix) can't log in with more than {_CYRUS_ITERATIONS}",
            warning=True,
        )
    if reading.is_bad("accounts.maildir", "domains"):
        return
    maildir = config.accounts.maildir
    domains = config.own_domains
    if len(domains) > 1 and "{user}" not in maildir and "{domain}" not in maildir:
        reading.problem(
            "accounts.maildir",
            f"{quote(maildir)} has no {{domain}}: users of {domains[0]} and {domains[1]} "
            "with one name would share a Maildir",
        )


def _check_lists(config: Config, reading: Reading) -> None:
    if reading.is_bad("list", "domains"):
        return
    seen: dict[str, int] = {}
    for number, mailing_list in enumerate(config.lists, 1):
        key = f"list[{number}]"
        address = mailing_list.address
        if not config.has_users(address.domain):
            reading.problem(
                f"{key}.address",
                f"{quote(str(address))} is not in a local domain; valid: {', '.join(config.own_domains)}",
            )
        elif why := check_address(address):
            reading.problem(f"{key}.address", why)
        if address.folded in seen:
            reading.problem(
                f"{key}.address", f"{quote(str(address))} is the address of list[{seen[address.folded]}] too"
            )
        seen.setdefault(address.folded, number)
        _check_members(mailing_list, key, reading)


def _check_members(mailing_list: MailingList, key: str, reading: Reading) -> None:
    own = mailing_list.address.folded
    if mailing_list.owner.folded == own:
        reading.problem(f"{key}.owner", "the list can't be its own owner: bounces would come back for ever")
    if not mailing_list.members:
        reading.problem(f"{key}.members", "the list has no members yet", warning=True)
    seen: set[str] = set()
    for number, member in enumerate(mailing_list.members, 1):
        if member.folded == own:
            reading.problem(f"{key}.members[{number}]", "the list can't be a member of itself")
        if member.folded in seen:
            reading.problem(f"{key}.members[{number}]", f"{quote(str(member))} is listed twice", warning=True)
        seen.add(member.folded)


def _check_submission(config: Config, reading: Reading) -> None:
    if reading.is_bad("submission", "domains"):
        return
    for number, grant in enumerate(config.submission.grants, 1):
        if not config.has_users(grant.account.domain):
            reading.problem(
                f"submission.grant[{number}].account",
                f"{quote(str(grant.account))} is not in a local domain; valid: {', '.join(config.own_domains)}",
            )
    _check_rates("submission", config.submission.rates, reading)
    _check_rates("submission.domain", config.submission.domain, reading)


def _check_rates(key: str, rates: Rates, reading: Reading) -> None:
    for what, hour, day in (
        ("messages", rates.messages_per_hour, rates.messages_per_day),
        ("recipients", rates.recipients_per_hour, rates.recipients_per_day),
    ):
        if 0 < day < hour:
            reading.problem(
                f"{key}.{what}_per_hour", f"{hour} is more than {what}_per_day, {day}", warning=True
            )


def _check_routes(config: Config, reading: Reading) -> None:
    if reading.is_bad("relay", "domains"):
        return
    for domain, route in config.relay.routes.items():
        key = join_key("relay.routes", domain)
        if config.has_users(domain):
            reading.problem(key, "is never used: mail for this domain ends here (domains)", warning=True)
        _check_route(key, route, config, reading)
    if config.relay.smarthost is not None:
        _check_route("relay.smarthost", config.relay.smarthost, config, reading)
    _check_pins(config, reading)
    _check_names("relay.domain", [entry.names for entry in config.relay.overrides], "names", reading)
    _check_names("relay.source", [entry.senders for entry in config.relay.sources], "senders", reading)


def _check_pins(config: Config, reading: Reading) -> None:
    for number, entry in enumerate(config.relay.overrides, 1):
        key = f"relay.domain[{number}]"
        if entry.require is Require.DANE and not (config.relay.dane and config.dns.validating):
            what = "relay.dane = true" if config.dns.validating else "dns.validating = true"
            reading.problem(f"{key}.require", f'"dane" needs {what}: no mail would ever go there')
        if entry.require is Require.STS and not config.relay.mta_sts:
            reading.problem(f"{key}.require", '"sts" needs relay.mta_sts = true: no mail would ever go there')
        if entry.hosts and entry.require is not Require.PKIX:
            reading.problem(f"{key}.hosts", 'means something with require = "pkix" only')


def _check_names(table: str, entries: Sequence[Sequence[str]], field: str, reading: Reading) -> None:
    seen: dict[str, int] = {}
    for number, names in enumerate(entries, 1):
        for name in names:
            if name in seen:
                reading.problem(
                    f"{table}[{number}].{field}", f"{quote(name)} is in {table}[{seen[name]}] already"
                )
            seen.setdefault(name, number)


def _check_route(key: str, route: Route, config: Config, reading: Reading) -> None:
    own_ports = _ports(config)
    if (route.host == config.hostname and route.port in own_ports) or (
        route.mx and config.has_users(route.host)
    ):
        reading.problem(key, f"{quote(route.host)} is this server: mail would go round in circles")
    if route.mx and re.fullmatch(r"[0-9.]+|.*:.*", route.host):
        reading.problem(key, f"{quote(route.host)} is an IP address: it has no MX records, leave out mx")


def _ports(config: Config) -> set[int]:
    places = (_place(listen.endpoint) for listen in config.listen)
    return {int(port) for kind, _, port in places if kind.startswith("tcp")}


def _check_queue(config: Config, reading: Reading) -> None:
    if reading.is_bad("queue"):
        return
    queue = config.queue
    if queue.schedule[0] > queue.expire:
        reading.problem(
            "queue.expire", "a message would be bounced before the first retry (schedule)", warning=True
        )
    elif queue.warn_after and queue.warn_after >= queue.expire:
        reading.problem("queue.warn_after", "is not before expire: nobody will be warned", warning=True)


def _check_commands(config: Config, reading: Reading) -> None:
    if reading.is_bad("delivery.command"):
        return
    commands = config.delivery.command
    if bool(commands.user) != (commands.directory is not None):
        missing = "directory" if commands.user else "user"
        reading.problem("delivery.command", f'"{missing}" is missing: commands need a user and a directory')
