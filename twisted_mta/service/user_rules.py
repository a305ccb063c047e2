"""The rules of users, changed while the server runs."""

from __future__ import annotations

from twisted_mta.config.schema import Config
from twisted_mta.core.rules import Changed, Limits, RulesError, parse_rules
from twisted_mta.service.accounts import Accounts
from twisted_mta.service.watched import FileWatch
from twisted_mta.store.rules import changing, check_rules, read_rules, rules_file, write_rules
from twisted_mta.store.threads import InlineWorkers, Workers


class UserRules:
    """Reads an order, and puts it in force."""

    def __init__(self, accounts: Accounts, watch: FileWatch, workers: Workers | InlineWorkers) -> None:
        self._accounts = accounts
        self._watch = watch
        self._workers = workers

    async def change(self, account: str, order: str) -> Changed:
        """Do what an order in the syntax of `core.rules` says about an account. Raises RulesError and OSError."""
        made = await self._workers.run(self._change, self._accounts.config, account, order)
        if made.after != made.before:
            await self._watch.refresh(self._accounts.watched_rules)
        return made

    def _change(self, config: Config, account: str, order: str) -> Changed:
        """In a thread."""
        with changing(config.rules_directory):
            try:
                before = read_rules(rules_file(config.rules_directory, account))
            except RulesError as error:
                why = "what is kept here of your rules is broken, the postmaster can mend it"
                raise RulesError(f"{why}: {error}") from None
            parsed = parse_rules(order, before)
            if not parsed.asked:
                raise RulesError("there is nothing in the message that could be done")
            settings = config.rules
            limits = Limits(forwards=settings.forwards, addresses=settings.addresses, text=settings.text)
            check_rules(parsed.rules, before, account, limits, self._accounts.directory)
            if parsed.rules != before:
                write_rules(config.rules_directory, account, parsed.rules)
        return Changed(before, parsed.rules)
