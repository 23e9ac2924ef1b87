"""What people can ask for: connections that there are, or were, and ids."""

import json
from pathlib import Path

from ingest.errors import ConfigError
from ingest.settings import Settings, load_settings


def known_connections(settings: Settings) -> list[str]:
    """Those of the settings, and those that a receiver with this data has served of late."""
    try:
        served = set(json.loads((settings.eventlog.path / "connections.json").read_text()))
    except (OSError, ValueError, TypeError):  # it is a help, no more
        served = set()
    return sorted({*settings.connections, *served})


def settings_with(config: Path | None, connection: str | None) -> Settings:
    """The settings. Raises ConfigError, also if there is no such connection and was none."""
    settings = load_settings(config)
    known = known_connections(settings)
    if connection is not None and connection not in known:
        raise ConfigError(
            f"--connection: there is no {connection!r}; there are: {', '.join(known)}"
        )
    return settings


def check_id(ident: str, connection: str | None) -> None:
    """Raises ConfigError for what can be no id, such as bytes that are no text."""
    if not (ident + (connection or "")).isprintable():
        raise ConfigError(f"{ident!r} is no id: no id has such characters")
