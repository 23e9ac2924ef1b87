"""Which connections there are, or were."""

import json

from ingest.settings import Settings


def known_connections(settings: Settings) -> list[str]:
    """Those of the settings, and those that a receiver with this data has served of late."""
    try:
        served = set(json.loads((settings.eventlog.path / "connections.json").read_text()))
    except (OSError, ValueError, TypeError):  # it is a help, no more
        served = set()
    return sorted({*settings.connections, *served})
