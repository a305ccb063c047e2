"""The aliases(5) file, as Postfix and Sendmail users know it: what a target is, reading files, looking names up.

    # a comment stands on a line of its own
    postmaster:          root
    root:                alice, bob@example.org
    staff:               alice, bob,
                         "carol smith"@example.test
    all:                 :include:/etc/mta/all
    carol:               \\carol, carol@example.org
    archive:             /var/mail/archive, /var/mail/archive.d/
    robot:               "|/usr/local/bin/robot --quiet"
    no-reply:            :blackhole:
    gone:                :fail: She left; write to info@example.test
    moving:              :defer: The mailbox is being moved
    info@example.test:   alice
    @old.example.test:   bob

A name alone holds in every local domain; NAME@DOMAIN in that domain only; @DOMAIN takes what nobody else in
that domain does. Names ignore case. A line that can't be read is reported and passed over, never guessed at.
"""

from twisted_mta.core.aliases.parse import (
    MAX_ENTRY,
    MAX_PROBLEMS,
    MAX_TARGETS,
    parse_aliases,
    parse_include,
    parse_target,
)
from twisted_mta.core.aliases.table import AliasTable, merge
from twisted_mta.core.aliases.targets import (
    Action,
    Alias,
    AliasFile,
    AliasProblem,
    Command,
    File,
    Include,
    IncludeFile,
    Name,
    Special,
    Target,
    shorten,
)

__all__ = [
    "MAX_ENTRY",
    "MAX_PROBLEMS",
    "MAX_TARGETS",
    "Action",
    "Alias",
    "AliasFile",
    "AliasProblem",
    "AliasTable",
    "Command",
    "File",
    "Include",
    "IncludeFile",
    "Name",
    "Special",
    "Target",
    "merge",
    "parse_aliases",
    "parse_include",
    "parse_target",
    "shorten",
]
