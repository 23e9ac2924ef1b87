"""`dialstream simulate`: a provider to try things on, faults included."""

from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.text import Text

from ingest.errors import ConfigError
from ingest.logs import setup_logs
from ingest.runner import Stopping, run
from ingest.settings import read_secret
from ingest.simulator.dialpad_server import SimulatedDialpad, simulated_dialpad
from ingest.simulator.faults import Faults, FaultsError
from ingest.simulator.story import COMPRESSED, Tempo

#: The same at every start, so that settings that name it stay good.
API_KEY = "key-of-the-simulated-dialpad"

_MINUTES_A_DAY = 1440
#: More requests and deliveries are counted, and forgotten.
_REMEMBER = 10_000


def simulate_dialpad(
    *,
    rate: float,
    seed: int,
    days: float,
    faults: Path | None,
    port: int,
    pace: float,
    to: str | None,
    secret_file: Path | None,
) -> int:
    """Serve a simulated Dialpad until a signal; the exit code. Raises ConfigError."""
    chosen = _read_faults(faults)
    secret = _read_secret(secret_file)
    if to is not None and not _can_be_posted_to(to):
        raise ConfigError(f"--to: {to!r} is no URL: write http://, or https://, and a host")
    console = Console(highlight=False, soft_wrap=True)
    logs = setup_logs("auto", "error")

    async def main(stopping: Stopping) -> None:
        if days >= 1:
            console.print(Text("The company lives through its past ...", "dim"))
        async with AsyncExitStack() as stack:
            serving = simulated_dialpad(
                tempo=tempo_of(rate),
                seed=seed,
                days=days,
                pace=pace,
                faults=chosen,
                api_key=API_KEY,
                port=port,
                remember=_REMEMBER,
            )
            try:
                dialpad = await stack.enter_async_context(serving)
            except OSError as error:
                raise ConfigError(
                    f"port {port} cannot be served on ({error.strerror}): choose another: --port"
                ) from None
            if to is not None:
                dialpad.subscribe(to, secret)
            console.print(_banner(dialpad, to))
            await stopping.wait()
        console.print(_sums(dialpad))

    try:
        return run(main)
    finally:
        logs.close()


def tempo_of(calls_a_minute: float) -> Tempo:
    """The lively company, with as many people as so many calls need."""
    return replace(
        COMPRESSED,
        calls_a_day=calls_a_minute * _MINUTES_A_DAY,
        members=min(max(7, round(calls_a_minute / 6)), 1000),
        outsiders=min(max(8, round(calls_a_minute / 6)), 5000),
    )


def _read_faults(file: Path | None) -> Faults:
    if file is None:
        return Faults()
    try:
        return Faults.read(file)
    except FaultsError as error:
        raise ConfigError(*error.faults) from None


def _read_secret(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return read_secret(file).decode()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"--secret-file: {file} holds no secret that can be read") from None


def _can_be_posted_to(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname)


def _banner(dialpad: SimulatedDialpad, to: str | None) -> Text:
    text = Text("\n")
    text.append("A simulated Dialpad is open, and its company is on the phone.\n\n", "bold")
    lines = [
        ("API", f"{dialpad.base_url}/api/v2"),
        ("key", dialpad.api_key),
        (
            "try",
            f'curl -H "Authorization: Bearer {dialpad.api_key}" {dialpad.base_url}/api/v2/call',
        ),
    ]
    if to is not None:
        lines.append(("posts to", to))
    for what, where in lines:
        text.append(f"  {what:<10}", "dim").append(f"{where}\n")
    text.append("\nIn dialstream.toml, a connection to it:\n\n", "bold")
    text.append(
        "  [connections.sim]\n"
        '  provider = "dialpad"\n'
        f'  base_url = "{dialpad.base_url}"\n'
        f'  api_key = "{dialpad.api_key}"\n'
        '  secrets = ["any secret of 32 letters, or more"]\n'
        '  public_url = "http://127.0.0.1:8080"\n'
    )
    text.append("\nThen ", "bold").append("dialstream up").append(" takes what comes, and ", "bold")
    return (
        text.append("dialstream dialpad sync")
        .append(" subscribes.", "bold")
        .append("\n\n  What was subscribed is forgotten at the end. Ctrl-C ends it.\n", "dim")
    )


def _sums(dialpad: SimulatedDialpad) -> Text:
    text = Text("\n")
    _add(text, "requests", dialpad.answers)
    _add(text, "deliveries", dialpad.deliveries)
    _add(text, "faults", dialpad.faults.counts)
    return text


def _add(text: Text, what: str, counts: Counter[str]) -> None:
    text.append(f"  {what:<12}", "dim")
    for word, count in sorted(counts.items()):
        text.append(f"{count:,}", "bold").append(f" {word}   ", "dim")
    text.append("\n" if counts.total() else "none\n", "dim")
