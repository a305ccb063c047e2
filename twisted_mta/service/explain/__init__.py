"""What would become of a message, told by the code that would decide it: for `mta explain`."""
