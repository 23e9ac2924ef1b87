"""What Dialgood would tell of the simulated company's calls: its agents, and their records.

Which calls an agent takes is a rule, and no chance:

- Each call centre's number is answered by an agent of its own: a record of every leg of the centre.
  Callers wait in line until the agent has time for them.
- A program that calls out in a campaign is an agent without a number, which shows the numbers of
  those for whom it calls: a record of every outbound leg that has a tag.
- A web site has agents who talk to one in eight of those who call; of these talks nobody else
  knows.

Every second centre's agent belongs to somebody else, who shares it.

https://apidocs.dialgood.com/partner-api-2171894m0. Assumed is what it leaves open: that a record
is there as soon as an agent has answered, or else at the end of the call, and that it may change
for a day.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Any
from zlib import crc32

from ingest.simulator.company import Company
from ingest.simulator.facts import Centre, Leg, SettingHappening
from ingest.simulator.faults import Faults
from ingest.simulator.world import World

_WEB_SHARE = 8
_CAMPAIGNS = 2
#: In life's seconds.
_SHORTEST_WEB_S, _LONGEST_WEB_S = 10, 300

RUNNING = "in-progress"
_ANSWERED = ("completed", "completed", "completed", "success", "Completed")
_NOT_ANSWERED = ("no-answer", "No Answer", "unanswered", "no answer")
_MACHINE = "machine-detected"


@dataclass(frozen=True, slots=True)
class Agent:
    id: str
    name: str
    user_id: str
    numbers: tuple[str, ...] = ()
    #: Whose number it answers.
    centre_id: int | None = None
    #: Name and address of whose it is, if it is not the key's user.
    shared_by: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A record with everything that will become of it."""

    agent_id: str
    #: The call's in the world; a talk on the web has that of the caller's.
    leg_id: int
    web: bool
    #: By Dialgood's clock.
    created_ms: int
    #: From when on it is there, by the world's.
    shown_ms: int
    #: From when on (by the world's clock; the first holds from the beginning): status, seconds.
    states: tuple[tuple[int, str, int], ...]
    ids: dict[str, str]
    #: What never changes of what lies under ``data``.
    ends: dict[str, str]

    def record(self, at_ms: int, zone: tzinfo = UTC) -> dict[str, Any]:
        """As it stands then."""
        status, seconds = next(
            (state[1], state[2]) for state in reversed(self.states) if _holds(state, self, at_ms)
        )
        return self._record(status, seconds, zone)

    def records(self, to_ms: int) -> list[dict[str, Any]]:
        """Everything that it has ever said until then, the first first; nothing twice."""
        if self.shown_ms > to_ms:
            return []
        times = {max(at_ms, self.shown_ms) for at_ms, _, _ in self.states}
        found: list[dict[str, Any]] = []
        for at_ms in sorted(times):
            record = self.record(at_ms)
            if at_ms <= to_ms and record not in found:
                found.append(record)
        return found

    def _record(self, status: str, seconds: int, zone: tzinfo) -> dict[str, Any]:
        return {
            "botId": self.agent_id,
            **self.ids,
            "created_at": iso(self.created_ms, zone),
            "data": {**self.ends, "callStatus": status, "callDuration": seconds},
        }


def _holds(state: tuple[int, str, int], row: Row, at_ms: int) -> bool:
    return state is row.states[0] or state[0] <= at_ms


def agents_of(company: Company, web_agents: int) -> tuple[Agent, ...]:
    own = ident("user", company.id)
    of_centres = (
        Agent(
            ident("agent", centre.id),
            f"{centre.name} Agent",
            ident("user", "partner") if nth % 2 else own,
            (centre.number,),
            centre.id,
            ("Partner One", "partner.one@example.com") if nth % 2 else None,
        )
        for nth, centre in enumerate(company.centres)
    )
    of_web = (
        Agent(ident("agent", "web", nth), f"Web Agent {nth + 1}", own) for nth in range(web_agents)
    )
    return *of_centres, Agent(ident("agent", "campaign"), "Campaign Agent", own), *of_web


def rows_of(
    leg: Leg, agents: "Agents", faults: Faults, clock_off_ms: int, pace: float
) -> Iterator[Row]:
    """The records that come of a leg; ``pace``: of the story."""
    agent = agents.who_takes(leg)
    if agent is not None and leg.ended_ms is not None:
        yield _phone_row(leg, agent, leg.ended_ms, faults, clock_off_ms)
    if leg.id == leg.conversation_id and agents.of_web and _odds("web", leg.id) % _WEB_SHARE == 0:
        yield _web_row(leg, agents, faults, clock_off_ms, pace)


class Agents:
    """All of a company's, and who of them takes which call."""

    def __init__(self, company: Company, web_agents: int) -> None:
        self.all = agents_of(company, web_agents)
        self.by_id = {agent.id: agent for agent in self.all}
        self._by_centre = {agent.centre_id: agent for agent in self.all if agent.numbers}
        self._campaign = self.all[len(company.centres)]
        self.of_web = self.all[len(company.centres) + 1 :]

    def who_takes(self, leg: Leg) -> Agent | None:
        """Nobody, if people do."""
        if isinstance(leg.host, Centre):
            return self._by_centre[leg.host.id]
        return self._campaign if leg.outbound and leg.tag else None


def _phone_row(leg: Leg, agent: Agent, ended_ms: int, faults: Faults, clock_off_ms: int) -> Row:
    answered_ms = leg.answered_ms
    begun_ms = leg.started_ms if answered_ms is None else answered_ms
    shown_ms = ended_ms if answered_ms is None else answered_ms
    created_ms = begun_ms
    if faults.has("rows_at_end", leg.id):
        faults.counts["rows_at_end"] += 1
        created_ms = shown_ms = ended_ms
    seconds = 0 if answered_ms is None else round((ended_ms - answered_ms) / 1000)
    ids = {}
    if _odds("conversationId", leg.id) % 20:
        ids["conversationId"] = ident("conversation", leg.id)
    if leg.outsider.name and _odds("contactId", leg.id) % 10:
        ids["contactId"] = ident("contact", leg.outsider.id)
    if leg.outbound and _odds("campaignId", leg.id) % 10:
        ids["campaignId"] = ident("campaign", leg.id % _CAMPAIGNS)
    us, them = leg.host.number, leg.outsider.number
    return Row(
        agent.id,
        leg.id,
        web=False,
        created_ms=created_ms + clock_off_ms,
        shown_ms=_late(shown_ms, ended_ms, faults),
        states=_states(leg.id, begun_ms, ended_ms, _status(leg), seconds, faults),
        ids=ids,
        ends={
            "from": us if leg.outbound else them,
            "to": them if leg.outbound else us,
            "direction": "outbound" if leg.outbound else "inbound",
        },
    )


def _web_row(leg: Leg, agents: Agents, faults: Faults, clock_off_ms: int, pace: float) -> Row:
    odds = _odds("web", leg.id) // _WEB_SHARE
    agent = agents.of_web[odds % len(agents.of_web)]
    span_s = _SHORTEST_WEB_S + odds % (_LONGEST_WEB_S - _SHORTEST_WEB_S)
    begun_ms, ended_ms = leg.started_ms, leg.started_ms + int(span_s * 1000 * pace)
    seconds = round((ended_ms - begun_ms) / 1000)
    return Row(
        agent.id,
        leg.id,
        web=True,
        created_ms=begun_ms + clock_off_ms,
        shown_ms=_late(begun_ms, ended_ms, faults),
        states=_states(leg.id, begun_ms, ended_ms, "completed", seconds, faults),
        ids={"conversationId": ident("conversation", "web", leg.id)},
        ends={"direction": "web"},
    )


def _late(shown_ms: int, ended_ms: int, faults: Faults) -> int:
    if not faults.strikes("records_late"):
        return shown_ms
    return ended_ms + int(faults.between(0, faults.records_late_s * 1000))


def _states(
    leg_id: int, begun_ms: int, ended_ms: int, status: str, seconds: int, faults: Faults
) -> tuple[tuple[int, str, int], ...]:
    """What it says while the call runs, at its end, and for some once more."""
    running, over = (begun_ms, RUNNING, 0), (ended_ms, status, seconds)
    if not faults.has("records_change", leg_id):
        return running, over
    faults.counts["records_change"] += 1
    odds = _odds("change", leg_id)
    late_ms = ended_ms + 1 + int(faults.records_change_s * 1000 * (odds % 997) / 997)
    match odds % 3:
        case 0:  # nobody has noticed the end
            return running, (late_ms, status, seconds)
        case 1:  # counted again
            return running, over, (late_ms, status, seconds + 1)
        case _:  # taken for a failure at first
            return running, (ended_ms, "failed", 0), (late_ms, status, seconds)


def _status(leg: Leg) -> str:
    odds = _odds("status", leg.id)
    if leg.answered_ms is not None:
        return _ANSWERED[odds % len(_ANSWERED)]
    if leg.barred:
        return "failed"
    if leg.diverted_ms is not None:
        return _MACHINE
    if leg.outbound and odds % 4 == 0:
        return "busy"
    return _NOT_ANSWERED[odds // 4 % len(_NOT_ANSWERED)]


# Agents, and their versions


@dataclass(frozen=True, slots=True)
class Version:
    id: str
    number: int
    message: str
    at_ms: int
    by: tuple[str, str]
    updates: dict[str, Any]


def versions_of(agent: Agent, world: World, at_ms: int) -> list[Version]:
    """The oldest first. Whoever changes a centre has told its agent, too."""
    first = Version(
        ident("version", agent.id, world.start_ms),
        1,
        "Initial set-up",
        world.start_ms,
        ("Pat Admin", agent.user_id),
        {"agentName": agent.name},
    )
    changes = world.setting_changes.get(agent.centre_id or 0, [])
    return [
        first,
        *(
            _version(agent, nth, change)
            for nth, change in enumerate(changes, 2)
            if change.at_ms <= at_ms
        ),
    ]


def _version(agent: Agent, number: int, change: SettingHappening) -> Version:
    word = "joins" if change.joined else "leaves"
    return Version(
        ident("version", agent.id, number, change.at_ms),
        number,
        f"{change.member.name} {word}",
        change.at_ms,
        (change.by.name, ident("user", change.by.id)),
        {"settings": {"team": word}},
    )


def show_agent(agent: Agent, versions: list[Version]) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "agentId": agent.id,
        "agentName": agent.name,
        "userId": agent.user_id,
        "settings": {"language": "en"},
        "phoneNumbers": list(agent.numbers),
        "metadata": {},
        "updated_at": iso(versions[-1].at_ms),
        "owner": agent.shared_by is None,
    }
    if agent.shared_by is not None:
        name, address = agent.shared_by
        shown["metadata"] = {"sharedByEmail": address, "sharedByName": name}
        shown["rights"] = ["view"]
    return shown


def show_version(agent: Agent, version: Version) -> dict[str, Any]:
    """As it is listed."""
    name, user_id = version.by
    return {
        "version_id": version.id,
        "version_number": version.number,
        "commit_message": version.message,
        "agent_id": agent.id,
        "metadata": {"user": name, "userId": user_id, "timestamp": version.at_ms},
    }


def ident(*parts: object) -> str:
    """24 hex digits, as its database makes them; the same for the same parts."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def iso(at_ms: int, zone: tzinfo = UTC) -> str:
    instant = datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(zone)
    text = instant.isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z") if zone is UTC else text


def _odds(what: str, leg_id: int) -> int:
    """A number that the call decides."""
    return crc32(f"{what} {leg_id}".encode())
