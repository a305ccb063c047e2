"""The queue on a clock of its own, in a world that is only described: what `mta simulate` runs."""
