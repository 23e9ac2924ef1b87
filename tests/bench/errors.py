"""What can go wrong."""


class BenchError(Exception):
    """The run cannot go on, or says nothing."""
