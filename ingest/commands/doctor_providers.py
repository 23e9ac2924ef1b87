"""What `dialstream doctor` asks the providers, and what is to be said of their answers.

Everything in a finding is in words of ours, but for what a provider said with a refusal, which is
masked. All providers are asked at once, each connection for PROVIDERS_S at most.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import apsw
import msgspec
import structlog.testing

from ingest.api import ApiError
from ingest.checkpoints import Checkpoint, read_checkpoints
from ingest.commands.findings import Finding
from ingest.errors import ConfigError
from ingest.providers.dialedin.api import FailedError
from ingest.providers.dialedin.api import open_api as open_dialedin
from ingest.providers.dialgood.api import DialgoodApi
from ingest.providers.dialgood.api import open_api as open_dialgood
from ingest.providers.diallink.api import DialLinkApi
from ingest.providers.diallink.api import open_api as open_diallink
from ingest.providers.diallink.keys import WARN_DAYS, key_expiry, me
from ingest.providers.dialpad.api import open_api as open_dialpad
from ingest.providers.dialpad.subscriptions import (
    WEBHOOKS,
    Desired,
    Found,
    desired,
    plan,
    syncs,
)
from ingest.providers.dialpad.sync import look
from ingest.settings import Connection, Poll, Settings
from schemas.times import now_ms

#: For all that is asked of one connection's provider.
PROVIDERS_S = 20.0

#: For the list of Dialgood's agents; what has come by then will do.
AGENTS_S = 12.0

#: For the checkpoints. That Kafka does not answer is told elsewhere.
CHECKPOINTS_S = 8.0

#: A key of DialLink's that ends within so many days has to be replaced now.
LAST_DAYS = 7

#: So many rounds may an agent of Dialgood's be left behind.
LATE_ROUNDS = 3

#: What is read at Dialgood beside the agents' calls, as a part of the time.
_BESIDE = 0.1

#: (connection, source) → checkpoint; None: the event log could not be read.
Checkpoints = Mapping[tuple[str, str], Checkpoint] | None


def ask_providers(settings: Settings) -> Sequence[Finding]:
    """What the providers say of each connection; only where there is a key."""
    asked = {name: at for name, at in settings.connections.items() if at.has_key}
    if not asked:
        return []

    async def ask_all() -> list[list[Finding]]:
        checkpoints = asyncio.create_task(_checkpoints(settings))
        try:
            return await asyncio.gather(*(_ask(*item, checkpoints) for item in asked.items()))
        finally:
            checkpoints.cancel()

    # The findings tell what log lines would.
    with structlog.testing.capture_logs():
        found = [finding for findings in asyncio.run(ask_all()) for finding in findings]
    for name, connection in asked.items():
        if connection.provider == "dialedin":
            found += judge_sink(name, settings)
    return found


async def _ask(
    name: str, connection: Connection, checkpoints: asyncio.Task[Checkpoints]
) -> list[Finding]:
    findings: list[Finding] = []
    provider = connection.provider
    label = _LABELS[provider]
    try:
        async with asyncio.timeout(PROVIDERS_S):
            if provider == "dialpad":
                await _ask_dialpad(findings, name, connection)
            elif provider == "diallink":
                await _ask_diallink(findings, name, connection)
            elif provider == "dialedin":
                await _ask_dialedin(findings, name, connection)
            else:
                await _ask_dialgood(findings, name, connection, checkpoints)
    except ApiError as error:
        findings.append(_refused(name, error))
    except ConfigError as error:
        findings += [Finding("bad", fault, "mend the settings") for fault in error.faults]
    except TimeoutError:
        findings.append(
            Finding(
                "bad",
                f"{name}: {label} has not told everything within {PROVIDERS_S:.0f} s",
                "is it reachable from here? Then try again",
            )
        )
    return findings


_LABELS = {
    "dialpad": "Dialpad",
    "diallink": "DialLink",
    "dialgood": "Dialgood",
    "dialedin": "DialedIn",
}


def _takes_key(name: str, connection: Connection) -> Finding:
    return Finding("good", f"{name}: {_LABELS[connection.provider]} takes the key")


def _refused(name: str, error: ApiError) -> Finding:
    what = str(error).removesuffix(error.mend).removesuffix(": ")
    if error.said:
        what += f" (it said: {error.said})"
    return Finding("bad", f"{name}: {what}", error.mend or "try again later")


# Dialpad


async def _ask_dialpad(findings: list[Finding], name: str, connection: Connection) -> None:
    async with open_dialpad(name, connection) as api:
        if connection.polled:
            await _may(findings, name, lambda: api.get("/api/v2/call", {"limit": 1}))
        if syncs(connection):
            findings += judge_subscriptions(name, desired(name, connection), await look(api))
        elif not connection.polled:
            await _may(findings, name, lambda: api.get(WEBHOOKS))
    if all(finding.state != "bad" for finding in findings):
        findings.insert(0, _takes_key(name, connection))


async def _may(findings: list[Finding], name: str, ask: Callable[[], Awaitable[object]]) -> None:
    """Ask for something; that the key may not see it is no reason not to go on."""
    try:
        await ask()
    except ApiError as error:
        if error.reason != "forbidden":
            raise
        findings.append(_refused(name, error))


def judge_subscriptions(name: str, wanted: Desired, found: Found) -> Iterator[Finding]:
    """How Dialpad's subscriptions differ from the settings."""
    mend = f"dialstream dialpad sync --connection {name}"
    steps = plan(wanted, found)
    ours = [endpoint for endpoint in found.endpoints if wanted.owns(endpoint)]
    if not ours and wanted.subscriptions:
        yield Finding("bad", f"{name}: Dialpad sends nothing: there is no subscription", mend)
        return
    for step in steps.todo:
        harmless = all(reason.what in ("doubled", "surplus") for reason in step.reasons)
        reasons = "; ".join(reason.text for reason in step.reasons)
        what = f"{name}: {step.text}: {reasons}"
        yield Finding("odd" if harmless else "bad", what, mend)
    if steps.hidden:
        yield Finding(
            "bad",
            f"{name}: the key may not read subscriptions of: {', '.join(steps.hidden)}",
            "use a company admin's key, for changelog with the scope `change_log`; or take them "
            f"out of connections.{name}.subscriptions.kinds",
        )
    if any(endpoint.secret in wanted.secrets[1:] for endpoint in ours):
        yield Finding(
            "odd",
            f"{name}: Dialpad signs with a secret that is not the first one",
            f"go on with rotating it: {mend} --rotate-secret",
        )
    if not steps.todo and not steps.hidden:
        count = len(wanted.subscriptions)
        yield Finding("good", f"{name}: {count} subscription(s) at Dialpad are as configured")


# DialLink


async def _ask_diallink(findings: list[Finding], name: str, connection: Connection) -> None:
    # A 403 may mean the rate (A-DL-5); here it is told, and does not keep us from asking on.
    hasty = {**connection.assume, "rest_s": 0.001, "rest_most_s": 0.001}
    async with open_diallink(name, connection.model_copy(update={"assume": hasty})) as api:
        await anext(api.pages("/v1/phone-system/calls"), None)
        findings.append(_takes_key(name, connection))
        findings.append(judge_user(name, await _user_is_admin(api)))
        findings.append(judge_expiry(name, await _expires(api), datetime.now(UTC)))


async def _user_is_admin(api: DialLinkApi) -> bool | None:
    user = await me(api)
    return None if user is None else user.admin


async def _expires(api: DialLinkApi) -> datetime | None:
    try:
        return await key_expiry(api)
    except ApiError as error:
        # Whoever is no admin may not see the list; nor may an older server have one.
        if error.status not in (400, 403, 404, 405):
            raise
        return None


def judge_user(name: str, is_admin: bool | None) -> Finding:  # noqa: FBT001 - the one thing to judge
    """What a key of DialLink's sees; https://support.diallink.com, article 10614171."""
    never = "private messages of users are shown to nobody else"
    if is_admin:
        return Finding("good", f"{name}: the key's user is an admin and sees everything; {never}")
    if is_admin is None:
        return Finding(
            "odd",
            f"{name}: DialLink does not tell what the key's user may see; {never}",
            "look at DialLink whether it is an admin: others see only what is theirs",
        )
    return Finding(
        "odd",
        f"{name}: the key's user is no admin and sees only what is theirs; {never}",
        f"make a key as a user that is an admin, and put it into connections.{name}",
    )


def judge_expiry(name: str, expires: datetime | None, now: datetime) -> Finding:
    """How long a key of DialLink's still lives, of its 365 days."""
    mend = f"make a new one at DialLink (Account, API key) and put it into connections.{name}"
    if expires is None:
        return Finding(
            "odd",
            f"{name}: DialLink does not tell when the key expires, a year after it was made",
            "look at DialLink (Account, API key), and make a new one in time",
        )
    days = (expires - now).total_seconds() / 86_400
    if days <= 0:
        return Finding("bad", f"{name}: the key has expired on {expires:%Y-%m-%d}", mend)
    state: Any = "bad" if days <= LAST_DAYS else "odd" if days <= WARN_DAYS else "good"
    what = f"{name}: the key expires in {days:.0f} days, on {expires:%Y-%m-%d}"
    return Finding(state, what, "" if state == "good" else mend)


def judge_notifications(name: str, connection: Connection) -> Finding:
    """Whether DialLink's notifications are taken; to be told without asking."""
    if not connection.has_secrets:
        return Finding("good", f"{name}: notifications are off: there is no secret")
    if not connection.has_key:
        return Finding(
            "odd",
            f"{name}: notifications are taken, but they are hints, and no call is read back",
            f"put a key into connections.{name}",
        )
    return Finding("good", f"{name}: notifications are taken at /webhooks/{name}")


# Dialgood


class _Agent(msgspec.Struct):
    id: Any = msgspec.field(name="agentId", default=None)
    #: Where it is missing, the key's user owns it.
    owner: Any = True


async def _ask_dialgood(
    findings: list[Finding],
    name: str,
    connection: Connection,
    checkpoints: asyncio.Task[Checkpoints],
) -> None:
    agents: dict[str, _Agent] = {}
    is_whole = True
    async with open_dialgood(name, connection) as api:
        try:
            async with asyncio.timeout(AGENTS_S):
                await _list_agents(api, agents)
        except TimeoutError:
            if not agents:
                raise
            is_whole = False
    findings.append(_takes_key(name, connection))
    shared = sum(agent.owner is False for agent in agents.values())
    findings.append(judge_agents(name, len(agents) - shared, shared, is_whole=is_whole))
    if agents and connection.polled:
        findings.append(judge_round(name, len(agents), connection.poll))
        known = await checkpoints
        if known is not None:
            findings.append(judge_marks(name, list(agents), known, connection.poll, now_ms()))


async def _list_agents(api: DialgoodApi, found: dict[str, _Agent]) -> None:
    async for page in api.agents():
        for item in page:
            try:
                agent = msgspec.json.decode(item, type=_Agent)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                continue  # the poller makes a reject of it
            if isinstance(agent.id, str) and agent.id:
                found[agent.id] = agent


def judge_agents(name: str, own: int, shared: int, *, is_whole: bool) -> Finding:
    if own + shared == 0:
        return Finding(
            "odd",
            f"{name}: the key's user has no agent, so there is nothing to read",
            "make the key as the user who has the agents, or have them shared with that user",
        )
    what = f"{own + shared} agent(s), {own} own and {shared} shared"
    if not is_whole:
        what = f"at least {what}: the list has not come to its end within {AGENTS_S:.0f} s"
    return Finding("good", f"{name}: {what}")


def judge_round(name: str, agents: int, poll: Poll) -> Finding:
    """Whether all agents can be read every ``every_s``: each is a request at least."""
    takes_s = agents / poll.requests_per_s
    what = (
        f"{name}: reading {agents} agent(s) takes {takes_s:,.0f} s or more at "
        f"{poll.requests_per_s:g} request(s)/s; every_s is {poll.every_s:g}"
    )
    # Near passes, sweeps, and what else there is, as parts of the time.
    sweeps = takes_s / poll.sweep_every_s
    if takes_s / poll.every_s + sweeps + _BESIDE <= 1:
        return Finding("good", what)
    left = 1 - sweeps - _BESIDE
    if left <= 0:
        mend = f"set poll.sweep_every_s and poll.every_s of connections.{name} (much) higher"
    else:
        enough_s = 60 * math.ceil(takes_s / left / 60)
        mend = f"set every_s = {enough_s} in connections.{name}.poll"
    return Finding(
        "odd",
        f"{what}: it cannot keep up, and calls come late",
        f"{mend}, or use keys of several users with fewer agents each",
    )


def judge_marks(
    name: str,
    agents: Sequence[str],
    checkpoints: Mapping[tuple[str, str], Checkpoint],
    poll: Poll,
    at_ms: int,
) -> Finding:
    """How far the poller has read these agents; ``at_ms``: our clock, ms since 1970."""
    found = [checkpoints.get((name, f"calls/{agent}"), {}).get("watermark_ms") for agent in agents]
    ages_s = [(at_ms - mark) / 1000 for mark in found if type(mark) is int]
    if not ages_s:
        return Finding("good", f"{name}: no agent was read yet")
    read = "all agents are" if len(ages_s) == len(agents) else f"{len(ages_s)} agent(s) are"
    what = f"{name}: {read} read up to {_ago(max(ages_s))} ago"
    late_s = LATE_ROUNDS * poll.every_s + poll.lag_s
    late = sum(age_s > late_s for age_s in ages_s)
    if late:
        return Finding(
            "odd",
            f"{what}, {late} of them not for more than {_ago(late_s)}",
            "is `dialstream poll` or `up` running? If so, its log says what it cannot read, or "
            "that it cannot keep up: poll_failed, poll_stopped, poll_behind_schedule",
        )
    if len(ages_s) < len(agents):
        return Finding(
            "odd",
            f"{what}, the other {len(agents) - len(ages_s)} not yet",
            "if `dialstream poll` or `up` is running they are next: look again",
        )
    return Finding("good", what)


def _ago(seconds: float) -> str:
    if seconds < 2 * 3600:
        return f"{max(seconds, 0) / 60:.0f} min"
    return f"{seconds / 3600:,.0f} h"


# DialedIn


async def _ask_dialedin(findings: list[Finding], name: str, connection: Connection) -> None:
    async with open_dialedin(name, connection) as api:
        try:
            await api.lead_exists("ClientId", "dialstream-doctor")
        except FailedError as error:
            findings.append(
                Finding(
                    "bad",
                    f"{name}: DialedIn does not find leads (it said: {error.said})",
                    f"look at account_id and assume of connections.{name}",
                )
            )
        else:
            findings.append(_takes_key(name, connection))


def judge_sink(name: str, settings: Settings) -> Iterator[Finding]:
    """What DialedIn is told, and of what it never will be; to be said without asking."""
    sink = settings.connections[name].sink
    others = [each for each in settings.connections.values() if each.provider != "dialedin"]
    here = f"connections.{name}.sink"
    if not sink.rules:
        yield Finding("good", f"{name}: DialedIn is told nothing: every rule of the sink is off")
    elif sink.lead_dial:
        yield Finding(
            "odd",
            f"{name}: who called and was missed is called back at once by DialedIn",
            f"if that is not meant, set {here}.lead_dial = false",
        )
    else:
        yield Finding(
            "good", f"{name}: DialedIn is told by {', '.join(sink.rules)}; it rings nobody"
        )
    if sink.lead_on_missed and not settings.reconciled:
        yield Finding(
            "odd",
            f"{name}: nobody is a lead, since no ledger says who was missed",
            f"set reconcile.enabled = true, or {here}.lead_on_missed = false",
        )
    if sink.dnc_on_consent and not any("consents" in each.poll.also for each in others):
        yield Finding(
            "odd",
            f"{name}: of consents nobody hears, since none are read",
            'add "consents" to poll.also of the connection that has them, '
            f"or set {here}.dnc_on_consent = false",
        )
    if sink.dnc_on_stop and others and all("content" in each.privacy.drop for each in others):
        yield Finding(
            "odd",
            f"{name}: no STOP is seen, since what is written is kept off the log",
            f'take "content" out of privacy.drop, or set {here}.dnc_on_stop = false',
        )


async def _checkpoints(settings: Settings) -> Checkpoints:
    try:
        async with asyncio.timeout(CHECKPOINTS_S):
            return await read_checkpoints(settings)
    except (ConfigError, TimeoutError, OSError, apsw.Error):
        return None
