"""Pure mail logic: no I/O, no clock, no threads, no Twisted."""
