"""`dialstream dialpad sync`: Dialpad's webhooks, websockets and subscriptions as configured."""

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from rich.console import Console
from rich.text import Text

from ingest.api import ApiError
from ingest.errors import ConfigError
from ingest.providers.dialpad.api import open_api
from ingest.providers.dialpad.subscriptions import Desired, Plan, Step, Verb, desired, plan, syncs
from ingest.providers.dialpad.sync import look, synchronize
from ingest.settings import Connection, Settings

#: Mark, colour, word.
_VERBS: Mapping[Verb, tuple[str, str, str]] = {
    "create": ("+", "green", "to create"),
    "change": ("~", "yellow", "to change"),
    "delete": ("-", "red", "to delete"),
    "leave": ("=", "dim", "as it should be"),
}


def sync_subscriptions(
    settings: Settings, connection: str | None, *, dry_run: bool, adopt: bool, as_json: bool
) -> int:
    """Print what has to be done, and do it unless ``dry_run``; the exit code.

    1 if it is dry and there is something to do, or if Dialpad does not do what it is asked for.
    Raises ConfigError.
    """
    chosen = choose(settings, connection)
    wanted = {name: desired(name, each) for name, each in chosen.items()}
    reports = [Report(name, quiet=as_json) for name in chosen]

    for name, each in chosen.items():
        if each.subscriptions.transport == "websocket" and not each.stream.enabled:
            print(
                f"{name}: nobody listens to its websocket: set "
                f"connections.{name}.stream.enabled = true, or events are lost",
                file=sys.stderr,
            )

    async def go() -> None:
        for report in reports:
            name = report.connection
            await _sync_one(name, chosen[name], wanted[name], report, dry_run=dry_run, adopt=adopt)

    asyncio.run(go())
    if as_json:
        print(json.dumps([report.as_json() for report in reports], indent=2))
    return int(any(report.is_bad or (dry_run and report.todo) for report in reports))


def choose(settings: Settings, name: str | None) -> dict[str, Connection]:
    """The connection of that name, else all that are for syncing. Raises ConfigError."""
    if name is None:
        chosen = {name: each for name, each in settings.connections.items() if syncs(each)}
        if not chosen:
            raise ConfigError(
                "connections: none can be synced: a Dialpad connection needs api_key_file (or "
                "api_key), secret_files (or secrets), and public_url, or the websocket as "
                "subscriptions.transport"
            )
    elif name not in settings.connections:
        known = ", ".join(settings.connections) or "none"
        raise ConfigError(f"there is no connection {name!r}: known: {known}")
    else:
        chosen = {name: settings.connections[name]}
    for at, each in chosen.items():
        if each.provider != "dialpad":
            raise ConfigError(f"connections.{at}: it is one of {each.provider}, not of Dialpad")
        if not each.has_key:
            raise ConfigError(f"connections.{at}.api_key: there is none: set it, or api_key_file")
    _tell_apart(settings, chosen)
    return chosen


def _tell_apart(settings: Settings, chosen: Mapping[str, Connection]) -> None:
    """A websocket is known by its secret alone: two connections must not share one."""
    all_of_dialpad = {n: c for n, c in settings.connections.items() if c.provider == "dialpad"}
    for (one, a), (other, b) in combinations(all_of_dialpad.items(), 2):
        if a.base_url != b.base_url or not (one in chosen or other in chosen):
            continue
        has_websocket = any(
            each.stream.enabled or each.subscriptions.transport == "websocket" for each in (a, b)
        )
        secrets = [set(each.signing_secrets()) if each.has_secrets else set() for each in (a, b)]
        if has_websocket and secrets[0] & secrets[1]:
            raise ConfigError(
                f"connections.{one} and connections.{other} have a secret in common, so that "
                "nobody can tell whose a websocket is: give each a secret of its own"
            )


async def _sync_one(
    name: str,
    connection: Connection,
    wanted: Desired,
    report: "Report",
    *,
    dry_run: bool,
    adopt: bool,
) -> None:
    try:
        async with open_api(name, connection) as api:
            found = await look(api)
            report.planned(plan(wanted, found, adopt=adopt))
            if not dry_run:
                await synchronize(api, wanted, found, report, adopt=adopt)
    except ApiError as error:
        report.failed(error)
    else:
        report.ended(dry_run=dry_run)


@dataclass(slots=True)
class Report:
    """Tells people how it goes with one connection, and remembers it for programs."""

    connection: str
    quiet: bool
    error: ApiError | None = None
    hidden: tuple[str, ...] = ()
    #: Of the plan that is shown.
    steps: list[Step] = field(default_factory=list)
    done: list[Step] = field(default_factory=list)
    _shown: Plan | None = None
    _console: Console = field(
        default_factory=lambda: Console(highlight=False, soft_wrap=True), repr=False
    )

    @property
    def todo(self) -> list[Step]:
        return [step for step in self.steps if step.verb != "leave"]

    @property
    def is_bad(self) -> bool:
        return self.error is not None or bool(self.hidden)

    def planned(self, plan: Plan) -> None:
        """A plan is about to be carried out; it may have been shown already."""
        if plan == self._shown and not self.done:
            return
        is_first, self._shown = self._shown is None, plan
        self.steps += [step for step in plan.steps if is_first or step.verb != "leave"]
        self.hidden = plan.hidden
        if self.quiet:
            return
        if is_first:
            self._print(Text(self.connection, "bold"))
        else:
            self._print(Text("  and what has come of it meanwhile:"))
        for step in plan.steps if is_first else plan.todo:
            self._print(_line(step))

    def taken(self, step: Step) -> None:
        self.done.append(step)
        if not self.quiet and self._console.is_terminal:
            count = f"  [{len(self.done)}/{len(self.todo)}] done: "
            self._print(Text(count, "dim").append(f"{_VERBS[step.verb][0]} {step.text}"))

    def ended(self, *, dry_run: bool) -> None:
        self._explain_hidden()
        if self.quiet:
            return
        if not self.todo:
            self._print(Text("  nothing to do", "dim"))
        elif dry_run:
            self._print(Text(f"  {_sums(self.steps)}; nothing was changed"))
        else:
            self._print(Text(f"  {len(self.done)} done"))

    def failed(self, error: ApiError) -> None:
        self.error = error
        self._explain_hidden()
        if self.quiet:
            return
        self._console.file.flush()
        print(f"{self.connection}: {error}", file=sys.stderr)
        if self.todo:
            print(
                f"  {len(self.done)} of {len(self.todo)} steps were taken; run it again to go on",
                file=sys.stderr,
            )

    def _explain_hidden(self) -> None:
        if self.quiet or not self.hidden:
            return
        self._console.file.flush()
        kinds = ", ".join(self.hidden)
        print(
            f"{self.connection}: the key may not read subscriptions of: {kinds}; they were left "
            "alone\n"
            "  they need the key of a company admin, changelog also the scope `change_log`; or "
            f"take them out of connections.{self.connection}.subscriptions.kinds",
            file=sys.stderr,
        )

    def as_json(self) -> dict[str, Any]:
        done = iter(self.done)  # in the order of the plan
        steps = [
            (step, None) if step.verb == "leave" else (step, next(done, None))
            for step in self.steps
        ]
        return {
            "connection": self.connection,
            "steps": [
                {
                    "verb": step.verb,
                    "kind": step.kind,
                    "what": step.text,
                    "id": step.id if taken is None else taken.id,
                    "reasons": [{"what": each.what, "text": each.text} for each in step.reasons],
                    "done": taken is not None,
                }
                for step, taken in steps
            ],
            "hidden": list(self.hidden),
            "error": None
            if self.error is None
            else {
                "reason": self.error.reason,
                "status": self.error.status,
                "text": str(self.error),
            },
        }

    def _print(self, text: Text) -> None:
        self._console.print(text)


def _line(step: Step) -> Text:
    mark, colour, _ = _VERBS[step.verb]
    text = Text(f"  {mark} {step.text}", colour)
    if step.id is not None:
        text.append(f" ({step.id})", "dim")
    if step.reasons:
        text.append(": " + "; ".join(reason.text for reason in step.reasons))
    return text


def _sums(steps: list[Step]) -> str:
    counts = {verb: sum(step.verb == verb for step in steps) for verb in _VERBS}
    return ", ".join(f"{count} {_VERBS[verb][2]}" for verb, count in counts.items() if count)
