"""What the commands do; `ingest.cli` says how they are called."""
