"""Matches what was pushed with what was recorded: a verdict for each call, and the ledger."""
