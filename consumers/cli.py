"""The root of ``dialstream``."""

import sys
from typing import Annotated

import typer

from ingest import cli as ingest_cli
from ingest.cli import ConfigOption, JsonOption
from ingest.errors import ConfigError

app = typer.Typer(
    help="One durable, ordered, complete stream of everything that happens on a company's phones.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
ingest_cli.add_commands(app)
rejects_app = typer.Typer(
    help="What is authentic and could not be read, or handled.", no_args_is_help=True
)
app.add_typer(rejects_app, name="rejects")
quarantine_app = typer.Typer(help="What did not verify.", no_args_is_help=True)
app.add_typer(quarantine_app, name="quarantine")

ConnectionOption = Annotated[str | None, typer.Option(help="Only of this one.")]
ReasonOption = Annotated[str | None, typer.Option(help="Only for this reason.")]
SinceOption = Annotated[
    str | None, typer.Option(help="Only what has come since then: a time, or 24h, 7d.")
]
GroupOption = Annotated[
    str | None, typer.Option(help="What this consumer group could not handle, instead.")
]
IdsArgument = Annotated[
    list[str], typer.Argument(help="Ids, or what stands behind their last colon.")
]
RevealOption = Annotated[bool, typer.Option("--reveal", help="Show the content, too.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")]


#: Commands that go on until they are stopped.
_ROLES = frozenset({"up", "receive", "listen", "poll", "reconcile", "sink"})


def main() -> None:
    """The console script. Exit codes: 0 done, 1 found something wrong, 2 used wrongly."""
    try:
        app()
    except ConfigError as error:
        ingest_cli.report_faults(error.faults, starting=not _ROLES.isdisjoint(sys.argv[1:2]))
        sys.exit(2)


@app.command()
def up(
    config: ConfigOption = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Also play signed traffic of a simulated company.")
    ] = False,
) -> None:
    """Run every role that is configured, in one process, for one machine."""
    from consumers.up import run_everything
    from ingest.settings import load_settings

    raise typer.Exit(run_everything(load_settings(config), demo=demo))


@app.command()
def tail(
    subjects: Annotated[
        list[str] | None, typer.Argument(help="call, message, contact, … Everything without.")
    ] = None,
    from_beginning: Annotated[bool, typer.Option("--from-beginning")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on at the end, in a pipe too.")
    ] = False,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many.")] = None,
    type_: Annotated[str | None, typer.Option("--type", help="Such as call.ended.")] = None,
    connection: Annotated[str | None, typer.Option()] = None,
    ident: Annotated[str | None, typer.Option("--id")] = None,
    tombstones: Annotated[bool, typer.Option(help="Deletions too.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Follow the stream; with --json, one event a line.

    With --from-beginning, and its output in a pipe, it ends when it has caught up.
    """
    from consumers.known import settings_with
    from consumers.tail import Wanted, follow_stream

    wanted = Wanted.of(subjects or [], type_, connection, ident, tombstones=tombstones)
    until_end = from_beginning and not follow and not sys.stdout.isatty()
    code = follow_stream(
        settings_with(config, connection),
        wanted,
        from_beginning=from_beginning,
        until_end=until_end,
        count=count,
        as_json=as_json,
    )
    raise typer.Exit(code)


@rejects_app.command("list")
def rejects_list(
    connection: ConnectionOption = None,
    reason: ReasonOption = None,
    since: SinceOption = None,
    group: GroupOption = None,
    all_: Annotated[bool, typer.Option("--all", help="Also those that were redriven.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show what could not be read: how much for which reason, and each. No content.

    Exits with 1 if there is something.
    """
    from consumers.instants import since as since_when
    from consumers.known import settings_with
    from ingest.commands.rejects import Wanted, list_rejects

    since_ms = 0 if since is None else since_when("--since", since)
    wanted = Wanted(frozenset(), connection, reason, since_ms, group, again=all_)
    raise typer.Exit(list_rejects(settings_with(config, connection), wanted, as_json=as_json))


@rejects_app.command("show")
def rejects_show(
    ids: IdsArgument,
    group: GroupOption = None,
    reveal: RevealOption = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show where a reject came from, and why it is one."""
    from ingest.commands.rejects import Wanted, show_reject
    from ingest.settings import load_settings

    wanted = Wanted(frozenset(ids), group=group, again=True)
    raise typer.Exit(show_reject(load_settings(config), wanted, reveal=reveal, as_json=as_json))


@rejects_app.command("redrive")
def rejects_redrive(
    ids: Annotated[
        list[str] | None, typer.Argument(help="Only these: ids, or what stands behind their colon.")
    ] = None,
    connection: ConnectionOption = None,
    reason: ReasonOption = None,
    since: SinceOption = None,
    group: GroupOption = None,
    dry_run: DryRunOption = False,
    again: Annotated[
        bool, typer.Option("--again", help="Also what was redriven before; it has the same ids.")
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Read rejects again, and publish what is readable now, with the ids that it would have had.

    With --group that group alone is handed its events again. Exits with 1 if some of it stays.
    """
    from consumers.instants import since as since_when
    from consumers.known import settings_with
    from ingest.commands.rejects import Wanted, redrive

    since_ms = 0 if since is None else since_when("--since", since)
    wanted = Wanted(frozenset(ids or ()), connection, reason, since_ms, group, again=again)
    code = redrive(settings_with(config, connection), wanted, dry_run=dry_run, as_json=as_json)
    raise typer.Exit(code)


@quarantine_app.command("list")
def quarantine_list(
    connection: ConnectionOption = None,
    since: SinceOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show what did not verify, and why, as far as the secrets in the settings can tell.

    Exits with 1 if there is something.
    """
    from consumers.instants import since as since_when
    from consumers.known import settings_with
    from ingest.commands.quarantine import Wanted, list_quarantine

    since_ms = 0 if since is None else since_when("--since", since)
    wanted = Wanted(frozenset(), connection, since_ms)
    raise typer.Exit(list_quarantine(settings_with(config, connection), wanted, as_json=as_json))


@quarantine_app.command("show")
def quarantine_show(
    ids: Annotated[list[str], typer.Argument(help="Ids, or what stands behind their last dash.")],
    reveal: RevealOption = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show what is known of a delivery that did not verify. Anybody may have made it up."""
    from ingest.commands.quarantine import Wanted, show_quarantined
    from ingest.settings import load_settings

    wanted = Wanted(frozenset(ids))
    settings = load_settings(config)
    raise typer.Exit(show_quarantined(settings, wanted, reveal=reveal, as_json=as_json))


@quarantine_app.command("requeue")
def quarantine_requeue(
    ids: Annotated[
        list[str] | None,
        typer.Argument(help="Only these: ids, or what stands behind their last dash."),
    ] = None,
    connection: ConnectionOption = None,
    since: SinceOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Verify again with the secrets that are in the settings now, and publish what verifies.

    The rest stays. Exits with 1 if some of it does.
    """
    from consumers.instants import since as since_when
    from consumers.known import settings_with
    from ingest.commands.quarantine import Wanted, requeue

    since_ms = 0 if since is None else since_when("--since", since)
    wanted = Wanted(frozenset(ids or ()), connection, since_ms)
    raise typer.Exit(
        requeue(settings_with(config, connection), wanted, dry_run=dry_run, as_json=as_json)
    )


@app.command()
def poll(config: ConfigOption = None) -> None:
    """Read back what the providers keep: calls, and what the setting `also` names."""
    from consumers.poll.role import poll_alone

    raise typer.Exit(ingest_cli.run_alone(poll_alone, config))


@app.command()
def reconcile(config: ConfigOption = None) -> None:
    """Match what was pushed with what was recorded: verdicts, the ledger, completeness."""
    from consumers.reconcile.role import reconcile_alone

    raise typer.Exit(ingest_cli.run_alone(reconcile_alone, config))


@app.command()
def sink(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be told; tell nothing.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(help="With --dry-run: of events since 2026-09-21, or of so long: 24h, 7d."),
    ] = None,
    reveal: Annotated[
        bool, typer.Option("--reveal", help="With --dry-run: whole numbers, and names.")
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Tell DialedIn what its rules ask for: whom not to call, whom we missed. A second stands by.

    With --dry-run everything since then is shown that a rule makes something of (24h if --since
    does not say), whether it was told before or not.
    """
    from consumers.instants import since as since_when
    from ingest.settings import load_settings

    if not dry_run:
        if since is not None or reveal or as_json:
            raise typer.BadParameter("only with --dry-run", param_hint="--since, --reveal, --json")
        from consumers.sinks.dialedin.role import sink_alone

        raise typer.Exit(ingest_cli.run_alone(sink_alone, config))
    from consumers.sinks.dialedin.dry_run import show_commands

    since_ms = since_when("--since", since or "24h")
    raise typer.Exit(show_commands(load_settings(config), since_ms, reveal=reveal, as_json=as_json))


@app.command()
def completeness(
    since: Annotated[
        str, typer.Option(help="2026-09-21, 2026-09-21T14:00:00Z, or so long ago: 24h, 7d.")
    ] = "24h",
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show which share of the calls of each hour both sides have seen.

    Exits with 1 if a connection is below the objective of the settings.
    """
    from consumers.instants import since as since_when
    from consumers.reconcile.report import show_completeness
    from ingest.settings import load_settings

    settings = load_settings(config)
    raise typer.Exit(show_completeness(settings, since_when("--since", since), as_json=as_json))


@app.command()
def drift(
    since: Annotated[
        str | None,
        typer.Option(help="Only what was seen first since then: a time, or 24h, 7d."),
    ] = None,
    connection: Annotated[str | None, typer.Option()] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show which fields, words and types providers send that nobody has told us of.

    What running processes have seen is written once a minute. Exits with 1 if there is something.
    """
    from consumers.instants import since as since_when
    from consumers.known import settings_with
    from ingest.commands.drift import show_drift

    since_ms = 0 if since is None else since_when("--since", since)
    settings = settings_with(config, connection)
    raise typer.Exit(
        show_drift(settings, connection=connection, since_ms=since_ms, as_json=as_json)
    )


@app.command()
def erase(
    whom: Annotated[str, typer.Argument(help="A number (+14155550100), or a contact's id.")],
    connection: Annotated[str | None, typer.Option(help="Only there. Else everywhere.")] = None,
    with_consents: Annotated[
        bool, typer.Option("--with-consents", help="Opt-outs too: they will not be honoured.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Write tombstones for somebody to the compacted topics; say what stays, and until when."""
    from consumers.erase import Whom
    from consumers.erase import erase as erase_records
    from consumers.known import settings_with

    code = erase_records(
        settings_with(config, connection),
        Whom.of(whom, connection),
        with_consents=with_consents,
        dry_run=dry_run,
        sure=yes,
        as_json=as_json,
    )
    raise typer.Exit(code)


@app.command()
def explain(
    call: Annotated[str, typer.Argument(help="Its id: `call_id` of its events.")],
    connection: Annotated[str | None, typer.Option()] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Say why a call got its verdict: both sides next to each other, and what was taken.

    Exits with 1 if the stream does not know it.
    """
    from consumers.known import settings_with
    from consumers.reconcile.explain import explain as explain_call

    raise typer.Exit(
        explain_call(settings_with(config, connection), call, connection, as_json=as_json)
    )


@app.command()
def trace(
    what: Annotated[
        str,
        typer.Argument(help="Id of a call, a conversation or an event; or a number, +15551230001."),
    ],
    connection: Annotated[str | None, typer.Option()] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Look at nothing that was written earlier: a time, or 24h, 7d."),
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show the life of a call: when it happened, reached us and stood on the log, and its verdicts.

    Of a phone number, the calls of the last 24 hours, or since --since. Exits with 1 if the stream
    does not know it.
    """
    from consumers.instants import since as since_when
    from consumers.known import settings_with
    from consumers.trace.command import trace as trace_call

    since_ms = None if since is None else since_when("--since", since)
    settings = settings_with(config, connection)
    raise typer.Exit(trace_call(settings, what, connection, since_ms, as_json=as_json))


@app.command()
def prove(
    for_: Annotated[str, typer.Option("--for", help="How long: 60s, 5m, 1h.")] = "60s",
    rate: Annotated[float, typer.Option(min=0.1, help="Deliveries a second.")] = 200.0,
    senders: Annotated[int, typer.Option(min=1, max=1000, help="Calls at a time.")] = 8,
    connection: Annotated[
        str | None, typer.Option(help="Whose secret signs. Not needed if only one has any.")
    ] = None,
    trouble: Annotated[
        str | None,
        typer.Option(
            help="A command of the shell that makes trouble; none by default. "
            "It finds the receiver in DIALSTREAM_PROVE_PID and DIALSTREAM_PROVE_URL."
        ),
    ] = None,
    every: Annotated[str, typer.Option(help="How often it makes trouble.")] = "20s",
    wait: Annotated[
        str, typer.Option(help="How long what was acknowledged may take to come to the log.")
    ] = "60s",
    really: Annotated[
        bool, typer.Option("--really", help="Post to what is running: to the real topics.")
    ] = False,
    to: Annotated[
        str | None, typer.Option(help="With --really: where. Else as the settings say.")
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Post signed events while there is trouble, read them back, and say what the stream has lost.

    To a receiver of its own, with your settings, beside your data and with topics of its own, which
    go when all is well. With --really to the one that runs: readers see events of type call.unknown
    with provider_state `dialstream_prove`, or notifications of type `dialstream.prove`.

    Exits with 1 if something acknowledged is missing, changed or out of order; 2 if it cannot run.
    """
    from consumers.prove.command import prove as play
    from consumers.prove.command import pushed_connection, span_s
    from consumers.prove.report import Plan
    from ingest.settings import load_settings

    settings = load_settings(config)
    plan = Plan(
        connection=pushed_connection(settings, connection),
        for_s=span_s("--for", for_),
        rate=rate,
        senders=senders,
        trouble=trouble,
        every_s=span_s("--every", every),
        wait_s=span_s("--wait", wait),
        really=really,
        to=to,
        config=config,
    )
    raise typer.Exit(play(settings, plan, as_json=as_json))


@app.command()
def backfill(
    connection: Annotated[str, typer.Argument(help="Whose calls.")],
    from_: Annotated[
        str, typer.Option("--from", help="When they began: 2026-09-21, or 2026-09-21T14:00:00Z.")
    ],
    to: Annotated[str, typer.Option("--to", help="Those that began then are not read.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count them, publish nothing.")
    ] = False,
    rate: Annotated[
        float | None,
        typer.Option(min=0.01, max=20.0, help="Requests a second, instead of the setting's."),
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Read the calls of a stretch of time back.

    Dates are days in UTC. It may run beside `up`, which does not know of it: together they ask the
    provider at the rate of the settings (requests_per_s) and at --rate, which is the same unless
    you give another. Killed or failed, it goes on where it was when it is run again with the same
    times; it exits with 1 until it is done.
    """
    from consumers.poll.backfill import backfill as read_back
    from ingest.settings import load_settings

    raise typer.Exit(
        read_back(
            load_settings(config),
            connection,
            from_,
            to,
            dry_run=dry_run,
            rate=rate,
            as_json=as_json,
        )
    )
