"""`dialstream simulate`: providers to try things on, faults included."""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

from rich.console import Console
from rich.text import Text

from ingest.errors import ConfigError
from ingest.logs import setup_logs
from ingest.runner import Stopping, run
from ingest.settings import read_secret
from ingest.simulator.dialedin_server import SimulatedDialedIn, simulated_dialedin
from ingest.simulator.dialgood_server import SimulatedDialgood, simulated_dialgood
from ingest.simulator.diallink_delivery import check_secret
from ingest.simulator.diallink_server import SimulatedDialLink, simulated_diallink
from ingest.simulator.dialpad_server import SimulatedDialpad, simulated_dialpad
from ingest.simulator.faults import Faults, FaultsError
from ingest.simulator.story import COMPRESSED, Tempo

# Keys and secrets are the same at every start, so that settings that name them stay good.
API_KEY = "key-of-the-simulated-dialpad"
SECRET = "secret-of-the-simulated-dialpad-"  # noqa: S105 - it protects nothing
DIALLINK_KEY = "00000000-0000-4000-8000-0000000d1a11+00000000-0000-4000-8000-0000000d1a12"
DIALLINK_SECRET = "whsec_c2VjcmV0LW9mLXRoZS1zaW11bGF0ZWQtZGlhbGxpbms="  # noqa: S105 - the same
_DIALLINK_SECRETS = f'secrets = ["{DIALLINK_SECRET}"]'
DIALGOOD_KEY = "key-of-the-simulated-dialgood"
DIALEDIN_TOKEN = "token-of-the-simulated-dialedin"  # noqa: S105 - the same
DIALEDIN_ACCOUNT, DIALEDIN_CAMPAIGN = "example", "Example Campaign"

#: Their connections, in the settings that are shown.
DIALPAD, DIALLINK, DIALGOOD, DIALEDIN = "sim", "sim_line", "sim_bots", "sim_floor"

_MINUTES_A_DAY = 1440
#: More requests and deliveries are counted, and forgotten.
_REMEMBER = 10_000
#: Whoever tries it does not want to wait for five minutes.
_QUICK_POLL = "every_s = 15\nlag_s = 5\n"


@dataclass(frozen=True, slots=True)
class Play:
    """What is to be played, and how."""

    #: Conversations a minute.
    rate: float
    seed: int
    days: float
    faults: Path | None
    pace: float

    @property
    def options(self) -> dict[str, Any]:
        return {
            "tempo": tempo_of(self.rate),
            "seed": self.seed,
            "days": self.days,
            "pace": self.pace,
            "remember": _REMEMBER,
        }


@dataclass(slots=True)
class _Shown:
    """What people are told of one provider that is open."""

    name: str
    #: What stands where.
    lines: list[tuple[str, str]]
    #: A table for dialstream.toml.
    settings: str
    sums: dict[str, Counter[str]]


_Open: TypeAlias = Callable[[AsyncExitStack], Awaitable[list[_Shown]]]
T = TypeVar("T")


def simulate_dialpad(
    play: Play, *, port: int, to: str | None = None, secret_file: Path | None = None
) -> int:
    """Serve a simulated Dialpad until a signal; the exit code. Raises ConfigError."""
    faults, secret = _read_faults(play.faults), _read_secret(secret_file)
    _check_url(to)

    async def serve(stack: AsyncExitStack) -> list[_Shown]:
        serving = simulated_dialpad(faults=faults, api_key=API_KEY, port=port, **play.options)
        dialpad = await _enter(stack, serving, port)
        if to is not None:
            dialpad.subscribe(to, secret)
        return [_show_dialpad(dialpad, to)]

    return _serve(
        play,
        serve,
        "A simulated Dialpad is open, and its company is on the phone.",
        "In dialstream.toml, a connection to it:",
        _then_up()
        .append(" takes what comes, and ", "bold")
        .append("dialstream dialpad sync")
        .append(" subscribes.", "bold"),
    )


def simulate_diallink(
    play: Play, *, port: int, to: str | None = None, secret_file: Path | None = None
) -> int:
    """Serve a simulated DialLink until a signal; the exit code. Raises ConfigError."""
    faults, secret = _read_faults(play.faults), _read_secret(secret_file) or DIALLINK_SECRET
    _check_url(to)
    try:
        check_secret(secret)
    except ValueError as error:
        raise ConfigError(f"--secret-file: {secret_file} holds no secret: {error}") from None

    async def serve(stack: AsyncExitStack) -> list[_Shown]:
        serving = simulated_diallink(faults=faults, api_key=DIALLINK_KEY, port=port, **play.options)
        diallink = await _enter(stack, serving, port)
        if to is not None:
            diallink.subscribe(to, secret)
        return [_show_diallink(diallink, to, secret_file)]

    return _serve(
        play,
        serve,
        "A simulated DialLink is open, and its company is on the phone.",
        "In dialstream.toml, a connection to it:",
        _then_up().append(" reads what it lists.", "bold"),
    )


def simulate_dialgood(play: Play, *, port: int) -> int:
    """Serve a simulated Dialgood until a signal; the exit code. Raises ConfigError."""
    faults = _read_faults(play.faults)

    async def serve(stack: AsyncExitStack) -> list[_Shown]:
        serving = simulated_dialgood(faults=faults, api_key=DIALGOOD_KEY, port=port, **play.options)
        return [_show_dialgood(await _enter(stack, serving, port))]

    return _serve(
        play,
        serve,
        "A simulated Dialgood is open, and its agents are on the phone.",
        "In dialstream.toml, a connection to it:",
        _then_up().append(" reads what it lists.", "bold"),
    )


def simulate_dialedin(faults: Path | None, *, seed: int, port: int) -> int:
    """Serve a simulated DialedIn until a signal; the exit code. Raises ConfigError."""
    read = _read_faults(faults)

    async def serve(stack: AsyncExitStack) -> list[_Shown]:
        serving = simulated_dialedin(
            token=DIALEDIN_TOKEN,
            account=DIALEDIN_ACCOUNT,
            campaigns=[DIALEDIN_CAMPAIGN],
            faults=read,
            seed=seed,
            port=port,
            remember=_REMEMBER,
        )
        return [_show_dialedin(await _enter(stack, serving, port))]

    return _serve(
        Play(rate=0, seed=seed, days=0, faults=faults, pace=1),
        serve,
        "A simulated DialedIn is open: it has no leads, and rings nobody's phone.",
        "In dialstream.toml, a connection to it, with every rule on:",
        _then_up()
        .append(" tells it what others tell us, and ", "bold")
        .append("dialstream sink --dry-run")
        .append(" shows what that would be.", "bold"),
    )


def simulate_all(play: Play, *, port: int, to: str | None = None) -> int:
    """Serve all of them over one company; the exit code. Raises ConfigError.

    ``port``: of the first one, the others have the next ones; 0: any. ``to``: scheme and host of a
    receiver that has the settings that are shown.
    """
    faults = [_read_faults(play.faults) for _ in range(3)]
    ports = [port + nth if port else 0 for nth in range(3)]
    _check_url(to)
    hooks = to and f"{to.rstrip('/')}/webhooks"

    async def serve(stack: AsyncExitStack) -> list[_Shown]:
        serving = simulated_dialpad(
            faults=faults[0], api_key=API_KEY, port=ports[0], **play.options
        )
        dialpad = await _enter(stack, serving, ports[0])
        same: dict[str, Any] = {
            "world": dialpad.world,
            "clock": dialpad.clock,
            "seed": play.seed,
            "remember": _REMEMBER,
        }
        diallink = await _enter(
            stack,
            simulated_diallink(faults=faults[1], api_key=DIALLINK_KEY, port=ports[1], **same),
            ports[1],
        )
        dialgood = await _enter(
            stack,
            simulated_dialgood(faults=faults[2], api_key=DIALGOOD_KEY, port=ports[2], **same),
            ports[2],
        )
        if hooks:
            dialpad.subscribe(f"{hooks}/{DIALPAD}", SECRET)
            diallink.subscribe(f"{hooks}/{DIALLINK}", DIALLINK_SECRET)
        return [
            _show_dialpad(dialpad, hooks and f"{hooks}/{DIALPAD}", SECRET),
            _show_diallink(diallink, hooks and f"{hooks}/{DIALLINK}"),
            _show_dialgood(dialgood),
        ]

    return _serve(
        play,
        serve,
        "A simulated Dialpad, DialLink and Dialgood are open: one company is on the phone.",
        "In dialstream.toml, connections to them:",
        _then_up()
        .append(" shows all in one stream, and ", "bold")
        .append("--to http://127.0.0.1:8080")
        .append(" here posts to it.", "bold"),
    )


def _serve(play: Play, serve: _Open, title: str, intro: str, then: Text) -> int:
    """Open what ``serve`` opens, tell of it, and wait for a signal."""
    console = Console(highlight=False, soft_wrap=True)
    logs = setup_logs("auto", "error")

    async def main(stopping: Stopping) -> None:
        if play.days >= 1:
            console.print(Text("The company lives through its past ...", "dim"))
        async with AsyncExitStack() as stack:
            shown = await serve(stack)
            console.print(_banner(shown, title, intro, then))
            await stopping.wait()
        console.print(_sums(shown))

    try:
        return run(main)
    finally:
        logs.close()


async def _enter(stack: AsyncExitStack, serving: AbstractAsyncContextManager[T], port: int) -> T:
    try:
        return await stack.enter_async_context(serving)
    except OSError as error:
        raise ConfigError(
            f"port {port} cannot be served on ({error.strerror}): choose another: --port"
        ) from None


def tempo_of(calls_a_minute: float) -> Tempo:
    """The lively company, with as many people as so many calls need."""
    return replace(
        COMPRESSED,
        calls_a_day=calls_a_minute * _MINUTES_A_DAY,
        members=min(max(7, round(calls_a_minute / 6)), 1000),
        outsiders=min(max(8, round(calls_a_minute / 6)), 5000),
    )


# Options


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


def _check_url(url: str | None) -> None:
    if url is None:
        return
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError(f"--to: {url!r} is no URL: write http://, or https://, and a host")


# What people see


def _show_dialpad(dialpad: SimulatedDialpad, to: str | None, secret: str | None = None) -> _Shown:
    api, key = f"{dialpad.base_url}/api/v2", dialpad.api_key
    # Alone it delivers what happens to who has subscribed; among others it is read, too.
    poll = "" if secret is None else f"\n[connections.{DIALPAD}.poll]\n{_QUICK_POLL}"
    return _Shown(
        "Dialpad",
        [
            ("API", api),
            ("key", key),
            ("try", f'curl -H "Authorization: Bearer {key}" {api}/call'),
            *_posts_to(to),
        ],
        f"[connections.{DIALPAD}]\n"
        'provider = "dialpad"\n'
        f'base_url = "{dialpad.base_url}"\n'
        f'api_key = "{key}"\n'
        f'secrets = ["{secret or "any secret of 32 letters, or more"}"]\n'
        f'public_url = "http://127.0.0.1:8080"\n{poll}',
        {
            "requests": dialpad.answers,
            "deliveries": dialpad.deliveries,
            "faults": dialpad.faults.counts,
        },
    )


def _show_diallink(
    diallink: SimulatedDialLink, to: str | None, secret_file: Path | None = None
) -> _Shown:
    api, key = f"{diallink.base_url}/v1", diallink.api_key
    secrets = f'secret_files = ["{secret_file}"]' if secret_file else _DIALLINK_SECRETS
    return _Shown(
        "DialLink",
        [
            ("API", api),
            ("key", key),
            ("try", f'curl -H "X-API-KEY: {key}" {api}/phone-system/calls'),
            *_posts_to(to),
        ],
        f"[connections.{DIALLINK}]\n"
        'provider = "diallink"\n'
        f'base_url = "{diallink.base_url}"\n'
        f'api_key = "{key}"\n'
        f"{secrets}\n"
        f"\n[connections.{DIALLINK}.poll]\n{_QUICK_POLL}",
        {
            "requests": diallink.answers,
            "deliveries": diallink.deliveries,
            "faults": diallink.faults.counts,
        },
    )


def _show_dialgood(dialgood: SimulatedDialgood) -> _Shown:
    api, key = f"{dialgood.base_url}/partner/v1", dialgood.api_key
    return _Shown(
        "Dialgood",
        [
            ("API", api),
            ("key", key),
            ("try", f'curl -H "api_token: {key}" {api}/agents'),
        ],
        f"[connections.{DIALGOOD}]\n"
        'provider = "dialgood"\n'
        f'base_url = "{dialgood.base_url}"\n'
        f'api_key = "{key}"\n'
        f"\n[connections.{DIALGOOD}.poll]\n{_QUICK_POLL}",
        {"requests": dialgood.answers, "faults": dialgood.faults.counts},
    )


def _show_dialedin(dialedin: SimulatedDialedIn) -> _Shown:
    api = f"{dialedin.base_url}/HttpImport"
    form = f"-d token={dialedin.token} -d accid={dialedin.account}"
    search = "Action=SearchLead -d SearchField=Phone -d Identifier=5551230001"
    return _Shown(
        "DialedIn",
        [
            ("API", api),
            ("key", dialedin.token),
            ("try", f"curl {form} -d {search} {api}/LeadOperations.php"),
        ],
        f"[connections.{DIALEDIN}]\n"
        'provider = "dialedin"\n'
        f'base_url = "{dialedin.base_url}"\n'
        f'api_key = "{dialedin.token}"\n'
        f'account_id = "{dialedin.account}"\n'
        f"\n[connections.{DIALEDIN}.sink]\n"
        "dnc_on_stop = true\n"
        "dnc_on_consent = true\n"
        "lead_on_missed = true\n"
        f'lead_campaign = "{DIALEDIN_CAMPAIGN}"\n'
        "update_on_contact = true\n",
        {
            "requests": dialedin.answers,
            "commands": dialedin.commands,
            "faults": dialedin.faults.counts,
        },
    )


def _posts_to(to: str | None) -> list[tuple[str, str]]:
    return [] if to is None else [("posts to", to)]


def _then_up() -> Text:
    return Text("\nThen ", "bold").append("dialstream up", "not bold")


def _banner(shown: Sequence[_Shown], title: str, intro: str, then: Text) -> Text:
    text = Text("\n").append(f"{title}\n", "bold")
    for provider in shown:
        text.append("\n")
        if len(shown) > 1:
            text.append(f"{provider.name}\n", "bold")
        for what, where in provider.lines:
            text.append(f"  {what:<10}", "dim").append(f"{where}\n")
    text.append(f"\n{intro}\n", "bold")
    for provider in shown:
        lines = provider.settings.splitlines()
        text.append("\n" + "".join(f"  {line}".rstrip() + "\n" for line in lines))
    return text.append(then).append(
        "\n\n  What it was told is forgotten at the end. Ctrl-C ends it.\n", "dim"
    )


def _sums(shown: Sequence[_Shown]) -> Text:
    text = Text("\n")
    for provider in shown:
        if len(shown) > 1:
            text.append(f"{provider.name}\n", "bold")
        for what, counts in provider.sums.items():
            _add(text, what, counts)
    return text


def _add(text: Text, what: str, counts: Counter[str]) -> None:
    text.append(f"  {what:<12}", "dim")
    for word, count in sorted(counts.items()):
        text.append(f"{count:,}", "bold").append(f" {word}   ", "dim")
    text.append("\n" if counts.total() else "none\n", "dim")
