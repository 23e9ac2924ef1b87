"""From the event log to people and programs."""
