"""Agents of recorded sides: whose numbers they are, and how far their calls were read."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Protocol, TypeAlias

from msgspec import Struct

from consumers.reconcile.entries import FOR_EVER_MS
from consumers.reconcile.facts import Listed, Mark

Key: TypeAlias = tuple[str, str]


class Agent(Struct, kw_only=True):
    """What is known of an agent of a recorded side; with an empty id, of all of them."""

    connection: str
    agent_id: str
    #: All that it ever had, and of those that it has no more, since when.
    numbers: list[str] = []
    lost_ms: dict[str, int] = {}
    #: As in `core.Watermark`.
    near_ms: int = 0
    swept_ms: int = 0
    wake_ms: None = None


class AgentStore(Protocol):
    """Where they are remembered."""

    def agents(self) -> Iterable[Agent]: ...
    def put_agent(self, agent: Agent) -> None: ...


class Agents:
    """All agents of some connections. To be told of facts in the order of the log's clock."""

    def __init__(self, store: AgentStore) -> None:
        self._store = store
        self._agents: dict[Key, Agent] = {}
        self._owners: defaultdict[Key, set[str]] = defaultdict(set)
        self._numbers: defaultdict[str, set[str]] = defaultdict(set)
        #: Of those that are nobody's any more, since when.
        self._lost_ms: defaultdict[str, dict[str, int]] = defaultdict(dict)

    def restore(self) -> None:
        """Go on with what the store has."""
        for agent in self._store.agents():
            self._agents[agent.connection, agent.agent_id] = agent
        for agent in list(self._agents.values()):
            self._learn(agent)

    def numbers_at(self, connection: str, ms: int) -> Collection[str]:
        """Those that agents had then, milliseconds since 1970, for all that is known by now."""
        numbers, lost_ms = self._numbers[connection], self._lost_ms[connection]
        gone = {number for number, each_ms in lost_ms.items() if each_ms <= ms}
        return numbers - gone if gone else numbers

    def listed(self, listed: Listed) -> Collection[str]:
        """An agent has these numbers; those that it had not before.

        Others that it had are still those of its earlier calls.
        """
        agent = self._agent(listed.connection, listed.agent_id)
        has = set(listed.numbers)
        fresh = has - ({*agent.numbers} - agent.lost_ms.keys())
        lost_ms = {
            number: agent.lost_ms.get(number, listed.at_ms) for number in {*agent.numbers} - has
        }
        if fresh or lost_ms != agent.lost_ms:
            agent.numbers, agent.lost_ms = sorted({*agent.numbers, *has}), lost_ms
            self._store.put_agent(agent)
            self._learn(agent)
        return fresh

    def mark(self, mark: Mark) -> Agent:
        """A connection, or one of its agents, was read up to there."""
        agent = self._agent(mark.connection, mark.agent_id)
        # One of a clock that was ahead would say of calls to come that they were listed.
        agent.near_ms = max(agent.near_ms, min(mark.watermark_ms or 0, mark.at_ms))
        agent.swept_ms = max(agent.swept_ms, min(mark.swept_ms or 0, mark.at_ms))
        self._store.put_agent(agent)
        return agent

    def read_up_to(self, connection: str, number: str | None, ms: int) -> tuple[int, int]:
        """How far those were read who had a number then: by the near pass, by the sweep."""
        whole = self._agents.get((connection, ""), _NOT_READ)
        owners = self._owners.get((connection, number or ""), ())
        had = (self._agents[connection, owner] for owner in owners)
        then = [each for each in had if ms < each.lost_ms.get(number or "", FOR_EVER_MS)]
        marks = [each if each.near_ms or each.swept_ms else whole for each in then] or [whole]
        return min(mark.near_ms for mark in marks), min(mark.swept_ms for mark in marks)

    def _agent(self, connection: str, agent_id: str) -> Agent:
        found = self._agents.get((connection, agent_id))
        if found is None:
            found = Agent(connection=connection, agent_id=agent_id)
            self._agents[connection, agent_id] = found
        return found

    def _learn(self, agent: Agent) -> None:
        """Whose numbers these are. What somebody has is not lost, whoever had it before."""
        for number in agent.numbers:
            owners = self._owners[agent.connection, number]
            owners.add(agent.agent_id)
            lost = [self._agents[agent.connection, each].lost_ms.get(number) for each in owners]
            lost_ms = [each for each in lost if each is not None]
            self._numbers[agent.connection].add(number)
            self._lost_ms[agent.connection].pop(number, None)
            if len(lost_ms) == len(lost):
                self._lost_ms[agent.connection][number] = max(lost_ms)


_NOT_READ = Agent(connection="", agent_id="")
