"""The rules of users, changed while the server runs."""

from __future__ import annotations

from twisted_mta.config.schema import Config
from twisted_mta.core.rules import Limits, Rules, RulesError, format_rules, parse_rules
from twisted_mta.service.accounts import Accounts
from twisted_mta.store.rules import check_rules, read_rules, rules_file, write_rules
from twisted_mta.store.threads import InlineWorkers, Workers


class UserRules:
    """Reads an order, and puts it in force."""

    def __init__(self, accounts: Accounts, workers: Workers | InlineWorkers) -> None:
        self._accounts = accounts
        self._workers = workers

    async def change(self, account: str, order: str) -> str:
        """The rules of an account after an order in the syntax of `core.rules`. Raises RulesError and OSError."""
        config = self._accounts.config
        made, changed = await self._workers.run(self._change, config, account, order)
        if changed:
            await self._accounts.refresh()
        return format_rules(made)

    def _change(self, config: Config, account: str, order: str) -> tuple[Rules, bool]:
        """In a thread."""
        before = read_rules(rules_file(config.rules_directory, account))
        parsed = parse_rules(order, before)
        if not parsed.asked:
            raise RulesError("there is nothing in the message that could be done")
        settings = config.rules
        limits = Limits(forwards=settings.forwards, addresses=settings.addresses, text=settings.text)
        check_rules(parsed.rules, account, limits, self._accounts.directory)
        if parsed.rules == before:
            return before, False
        write_rules(config.rules_directory, account, parsed.rules)
        return parsed.rules, True
