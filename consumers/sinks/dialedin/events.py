"""From an event on the stream to what DialedIn is told of it."""

from collections.abc import Callable, Mapping
from zoneinfo import ZoneInfo

from msgspec.structs import replace

from consumers.sinks.dialedin.rules import (
    Decision,
    Lead,
    of_consent,
    of_contact,
    of_conversation,
    of_message,
)
from consumers.subscribe import Event
from ingest.providers.dialedin.assumptions import Assumptions
from ingest.settings import Connection
from schemas.base import Model
from schemas.consent import Consent
from schemas.contact import Contact
from schemas.conversation import Conversation
from schemas.message import Message

#: Rule → what it is for.
MODELS: Mapping[str, type[Model]] = {
    "dnc_on_stop": Message,
    "dnc_on_consent": Consent,
    "lead_on_missed": Conversation,
    "update_on_contact": Contact,
}

#: Whose call was over longer ago is not called back out of the blue: the lead is only stored.
DIAL_WITHIN_MS = 3_600_000


class Rules:
    """The rules of one connection as they are set."""

    def __init__(self, connection: Connection, since_ms: Mapping[str, int]) -> None:
        """``since_ms``: of each rule that is on, what happened before is none of its business.

        Milliseconds since 1970. What is told of a call happened when the call was over, and else
        when it was recorded.
        """
        self.since_ms = since_ms
        self._dial = connection.sink.lead_dial
        self._names = Assumptions.of(connection).contact_fields
        self._zone = ZoneInfo(connection.timezone or "UTC")

    def decide(self, event: Event[Model], clock_ms: Callable[[], int]) -> tuple[str, Decision]:
        """(rule, what follows); ``clock_ms``: milliseconds since 1970. Raises ValueError."""
        rule, decision = self._decide(event)
        if not decision.commands and not decision.outside:
            return rule, decision
        happened_ms = _happened_ms(event)
        if happened_ms < self.since_ms[rule]:
            return rule, Decision(nothing="before_the_rule")
        if clock_ms() - happened_ms > DIAL_WITHIN_MS:
            commands = tuple(
                replace(each, dial=False) if isinstance(each, Lead) else each
                for each in decision.commands
            )
            decision = replace(decision, commands=commands)
        return rule, decision

    def _decide(self, event: Event[Model]) -> tuple[str, Decision]:
        data = event.data
        if isinstance(data, Message):
            return "dnc_on_stop", of_message(event.connection, data)
        if isinstance(data, Consent):
            return "dnc_on_consent", of_consent(event.id, data)
        if isinstance(data, Conversation):
            return "lead_on_missed", of_conversation(
                event.connection, data, dial=self._dial, zone=self._zone
            )
        assert isinstance(data, Contact)
        return "update_on_contact", of_contact(event.id, data, self._names)


def _happened_ms(event: Event[Model]) -> int:
    at = event.envelope.recordedtime
    if isinstance(event.data, Conversation):
        # One that is read back, or of which something came later, is recorded long after the call.
        at = min(at, event.data.ended_at or event.data.started_at or at)
    return round(at.timestamp() * 1000)
