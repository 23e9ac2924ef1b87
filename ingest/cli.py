"""Commands of the ingest side. What a command needs is imported when it runs: help is instant."""

import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ingest.runner import Stopping
    from ingest.settings import Settings

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="Settings file. Else DIALSTREAM_CONFIG, else ./dialstream.toml."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]


def add_commands(app: typer.Typer) -> None:
    """Mount everything of this side on the root."""
    app.command()(receive)
    app.command()(listen)
    app.command()(send)
    app.command()(doctor)
    topics = typer.Typer(help="The topics of the event log.", no_args_is_help=True)
    topics.command("create")(topics_create)
    app.add_typer(topics, name="topics")
    schemas = typer.Typer(help="The published schemas.", no_args_is_help=True)
    schemas.command("export")(schemas_export)
    app.add_typer(schemas, name="schemas")
    spool = typer.Typer(
        help="What waits for Kafka on a disk, and bringing it there.", no_args_is_help=True
    )
    spool.command("show")(spool_show)
    spool.command("drain")(spool_drain)
    app.add_typer(spool, name="spool")
    dialpad = typer.Typer(help="What Dialpad has to know of us.", no_args_is_help=True)
    dialpad.command("sync")(dialpad_sync)
    app.add_typer(dialpad, name="dialpad")
    simulate = typer.Typer(
        help="A provider that does not exist, to try things on.", no_args_is_help=True
    )
    simulate.command("dialpad")(simulate_dialpad)
    simulate.command("diallink")(simulate_diallink)
    simulate.command("dialgood")(simulate_dialgood)
    simulate.command("dialedin")(simulate_dialedin)
    simulate.command("all")(simulate_all)
    app.add_typer(simulate, name="simulate")
    config = typer.Typer(help="The settings in force.", no_args_is_help=True)
    config.command("show")(config_show)
    app.add_typer(config, name="config")


def run_alone(
    role: "Callable[[Settings, Stopping], Coroutine[None, None, None]]", config: Path | None
) -> int:
    """Be one role and nothing else, until a signal; the exit code. Raises ConfigError."""
    from ingest.logs import setup_logs
    from ingest.runner import run
    from ingest.settings import load_settings

    settings = load_settings(config)
    logs = setup_logs(settings.logging.format, settings.logging.level)
    try:
        return run(lambda stopping: role(settings, stopping))
    finally:
        logs.close()


def receive(config: ConfigOption = None) -> None:
    """Run the receiver: the public port, the admin port, nothing else."""
    from ingest.receiver import receive_alone

    raise typer.Exit(run_alone(receive_alone, config))


def listen(config: ConfigOption = None) -> None:
    """Run the listener: the websockets of the connections that have them enabled.

    A second one stands by.
    """
    from ingest.listener import listen_alone

    raise typer.Exit(run_alone(listen_alone, config))


def send(
    files: Annotated[list[str], typer.Argument(help="Files with a provider's JSON; - is stdin.")],
    connection: Annotated[
        str | None, typer.Option(help="Whose secret signs. Not needed if there is only one.")
    ] = None,
    to: Annotated[str | None, typer.Option(help="Where to post, instead of our own port.")] = None,
    config: ConfigOption = None,
) -> None:
    """Sign payloads as the provider would, and post them.

    Exits with 1 unless every answer is 2xx.
    """
    from ingest.commands.send import send_files
    from ingest.settings import load_settings

    raise typer.Exit(send_files(load_settings(config), files, connection, to))


def doctor(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check settings, event log and machine; say what is wrong and how to mend it.

    Exits with 1 if something has to be mended.
    """
    from ingest.commands.doctor import diagnose, show

    raise typer.Exit(show(diagnose(config), as_json=as_json))


def topics_create(
    group: Annotated[
        str | None,
        typer.Option(help="Also the topic for what this consumer group cannot handle."),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Make the topics that are missing. Never alters those that are there.

    Exits with 1 if one could not be made, or differs so that a promise is broken.
    """
    import re

    from ingest.commands.topics import create_topics
    from ingest.settings import load_settings

    if group is not None and not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", group):
        raise typer.BadParameter("letters, digits, . _ - are allowed", param_hint="--group")
    raise typer.Exit(create_topics(load_settings(config), group))


SpoolPath = Annotated[
    Path | None,
    typer.Argument(help="A data directory, or spool/<role> in one. Else eventlog.path."),
]


def spool_show(
    path: SpoolPath = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Show what waits for Kafka, also beside a running receiver."""
    from ingest.commands.spool import show_spool
    from ingest.settings import load_settings

    raise typer.Exit(show_spool(path or load_settings(config).eventlog.path, as_json=as_json))


def spool_drain(path: SpoolPath = None, config: ConfigOption = None) -> None:
    """Bring to Kafka what a volume holds whose receiver is gone.

    Exits with 1 if something is left: after Ctrl-C, say. Running it again goes on.
    """
    from ingest.commands.spool import drain_spool
    from ingest.logs import quietly
    from ingest.settings import load_settings

    settings = load_settings(config)
    with quietly(settings.logging.format):
        code = drain_spool(settings, path or settings.eventlog.path)
    raise typer.Exit(code)


def dialpad_sync(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done; exits with 1 if anything.")
    ] = False,
    adopt: Annotated[
        bool,
        typer.Option(
            "--adopt",
            help="Also take over subscriptions whose webhook or websocket is not ours, where they "
            "are for the same kind, contact type and target as one of ours. One is moved to our "
            "address and set as configured, others for the same are deleted: whoever got their "
            "events gets no more. Webhooks and websockets that are not ours stay as they are.",
        ),
    ] = False,
    rotate_secret: Annotated[
        bool,
        typer.Option(
            "--rotate-secret",
            help="Instead, put a new secret into the first of the two `secret_files`, the current "
            "one into the second, wait until receivers accept the new one, and set it at Dialpad.",
        ),
    ] = False,
    reloaded: Annotated[
        bool,
        typer.Option(
            "--reloaded",
            help="With --rotate-secret, where receivers cannot be asked from here: all receivers "
            "and listeners have had SIGHUP since the files were written.",
        ),
    ] = False,
    connection: Annotated[
        str | None, typer.Option(help="Only this one. Else all of Dialpad that can be.")
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Make Dialpad's webhooks, websockets and subscriptions as the settings ask for.

    Ours is a webhook at `public_url` + /webhooks/<connection> or below, a websocket with one of our
    secrets, and what subscribes to these; nothing else is touched. Running it again goes on after
    a failure. Exits with 1 if Dialpad does not do what it is asked for.
    """
    from ingest.commands.dialpad_rotate import rotate_secret as rotate
    from ingest.commands.dialpad_sync import sync_subscriptions
    from ingest.logs import quietly
    from ingest.settings import load_settings

    if rotate_secret and (adopt or as_json):
        raise typer.BadParameter("not with --adopt or --json", param_hint="--rotate-secret")
    if reloaded and not rotate_secret:
        raise typer.BadParameter("only with --rotate-secret", param_hint="--reloaded")
    settings = load_settings(config)
    with quietly(settings.logging.format):
        if rotate_secret:
            code = rotate(settings, connection, dry_run=dry_run, reloaded=reloaded)
        else:
            code = sync_subscriptions(
                settings, connection, dry_run=dry_run, adopt=adopt, as_json=as_json
            )
    raise typer.Exit(code)


def schemas_export() -> None:
    """Write JSON Schemas and the AsyncAPI document into schemas/published/."""
    from schemas.export import PUBLISHED, export

    written = export()
    typer.echo(f"{len(written)} documents in {PUBLISHED}")


RateOption = Annotated[float, typer.Option(min=0.01, help="Conversations a minute.")]
SeedOption = Annotated[int, typer.Option(help="The same seed tells the same story.")]
DaysOption = Annotated[float, typer.Option(min=0, help="Of past that can be read back.")]
FaultsOption = Annotated[
    Path | None, typer.Option(help="A TOML file of what goes wrong, such as: dropped = 0.05")
]
PortOption = Annotated[int, typer.Option(min=0, max=65535, help="Of the API; 0: any.")]
PaceOption = Annotated[float, typer.Option(min=0.01, help="How fast its clock runs.")]
ToOption = Annotated[
    str | None, typer.Option(help="Post to this URL without being asked to by the API.")
]
SecretFileOption = Annotated[
    Path | None, typer.Option(help="What these posts are signed with; unsigned without.")
]


def simulate_dialpad(
    rate: RateOption = 40,
    seed: SeedOption = 1,
    days: DaysOption = 0.1,
    faults: FaultsOption = None,
    port: PortOption = 8900,
    pace: PaceOption = 1,
    to: ToOption = None,
    secret_file: SecretFileOption = None,
) -> None:
    """Serve a simulated Dialpad: API, deliveries and websockets of a company on the phone."""
    from ingest.commands import simulate

    play = simulate.Play(rate, seed, days, faults, pace)
    raise typer.Exit(simulate.simulate_dialpad(play, port=port, to=to, secret_file=secret_file))


def simulate_diallink(
    rate: RateOption = 40,
    seed: SeedOption = 1,
    days: DaysOption = 0.1,
    faults: FaultsOption = None,
    port: PortOption = 8901,
    pace: PaceOption = 1,
    to: Annotated[str | None, typer.Option(help="Post notifications to this URL.")] = None,
    secret_file: Annotated[
        Path | None,
        typer.Option(help="What signs them (whsec_…); without, what the settings shown hold."),
    ] = None,
) -> None:
    """Serve a simulated DialLink: lists and notifications of a company on the phone."""
    from ingest.commands import simulate

    play = simulate.Play(rate, seed, days, faults, pace)
    raise typer.Exit(simulate.simulate_diallink(play, port=port, to=to, secret_file=secret_file))


def simulate_dialgood(
    rate: RateOption = 40,
    seed: SeedOption = 1,
    days: DaysOption = 0.1,
    faults: FaultsOption = None,
    port: PortOption = 8902,
    pace: PaceOption = 1,
) -> None:
    """Serve a simulated Dialgood: agents of a company on the phone, and their call logs."""
    from ingest.commands import simulate

    play = simulate.Play(rate, seed, days, faults, pace)
    raise typer.Exit(simulate.simulate_dialgood(play, port=port))


def simulate_dialedin(
    seed: SeedOption = 1,
    faults: FaultsOption = None,
    port: PortOption = 8903,
) -> None:
    """Serve a simulated DialedIn: it takes leads and numbers that are not to be called."""
    from ingest.commands import simulate

    raise typer.Exit(simulate.simulate_dialedin(faults, seed=seed, port=port))


def simulate_all(
    rate: RateOption = 40,
    seed: SeedOption = 1,
    days: DaysOption = 0.1,
    faults: FaultsOption = None,
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65533, help="Of Dialpad's API; the others have the next two. 0: any."
        ),
    ] = 8900,
    pace: PaceOption = 1,
    to: Annotated[
        str | None,
        typer.Option(help="Post to the receiver at this address (scheme, host, port)."),
    ] = None,
) -> None:
    """Serve Dialpad, DialLink and Dialgood at once: three views of one company on the phone."""
    from ingest.commands import simulate

    play = simulate.Play(rate, seed, days, faults, pace)
    raise typer.Exit(simulate.simulate_all(play, port=port, to=to))


def config_show(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the settings in force, secrets masked."""
    import json

    import tomli_w

    from ingest.settings import in_force, load_settings

    values = in_force(load_settings(config))
    typer.echo(json.dumps(values, indent=2) if as_json else tomli_w.dumps(values).rstrip())


def report_faults(faults: tuple[str, ...], *, starting: bool) -> None:
    """Say what was wrong with the settings or the command, a line each."""
    print(f"dialstream cannot {'start' if starting else 'do that'}:", file=sys.stderr)
    for fault in faults:
        print(f"  - {fault}", file=sys.stderr)
