"""From the wire to the event log: verify, normalize, make durable, then acknowledge."""
