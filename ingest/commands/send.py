"""`dialstream send`: what a provider would post, from a file."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

from ingest.errors import ConfigError
from ingest.providers import PROVIDERS
from ingest.service import url_of
from ingest.settings import Settings

#: Dialpad's.
TIMEOUT_S = 5.0


def send_files(
    settings: Settings, files: Sequence[str], connection: str | None, to: str | None
) -> int:
    """Sign and post each file; 0 if every answer was 2xx, else 1. Raises ConfigError."""
    name = connection or _only_connection(settings)
    if name not in settings.connections:
        raise ConfigError(
            f"there is no connection {name!r}: known: {', '.join(settings.connections) or 'none'}"
        )
    chosen = settings.connections[name]
    sign = PROVIDERS[chosen.provider].sign
    url = to or f"{url_of(settings.receiver)}/webhooks/{name}"
    code = 0
    with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as client:
        for label, payload in _payloads(files):
            try:
                signed = sign(payload, chosen)
                answer = client.post(url, content=signed.body, headers=dict(signed.headers))
            except httpx.HTTPError as error:
                print(f"{label}: {url} does not answer ({type(error).__name__})", file=sys.stderr)
                print("  start the receiver with `dialstream up`, or set --to", file=sys.stderr)
                return 1
            print(f"{label}: {answer.status_code} {_reason(answer)}".rstrip())
            code = code if answer.is_success else 1
    return code


def _only_connection(settings: Settings) -> str:
    if len(settings.connections) == 1:
        return next(iter(settings.connections))
    raise ConfigError(
        f"name the connection with --connection: {', '.join(settings.connections) or 'none'}"
    )


def _payloads(files: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    for name in files:
        try:
            yield name, sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        except OSError as error:
            raise ConfigError(f"{name} cannot be read: {error.strerror}") from None


def _reason(answer: httpx.Response) -> str:
    if answer.is_success:
        return "stored"
    try:
        return str(answer.json().get("reason", ""))
    except (ValueError, AttributeError):
        return ""
