"""What runs: reception, the queue manager, listeners, control."""
