"""What follows from an event, by hand."""

from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.sinks.dialedin.events import DIAL_WITHIN_MS, Rules
from consumers.sinks.dialedin.rules import (
    STOP_WORDS,
    Decision,
    Dnc,
    Lead,
    Update,
    is_stop,
    of_consent,
    of_contact,
    of_conversation,
    of_message,
    ten_digits,
)
from ingest.settings import SINK_RULES, Connection
from schemas.consent import Consent
from schemas.contact import Contact
from schemas.conversation import Conversation
from schemas.event import Event
from schemas.message import Message
from tests.consumers.sinks.dialedin.events import (
    AT_MS,
    consent,
    contact,
    conversation,
    event,
    message,
    told,
)

NEW_YORK = ZoneInfo("America/New_York")
NAMES: Any = {"first_name": "FirstName", "last_name": "LastName"}


# STOP


@pytest.mark.parametrize(
    "text",
    [
        "STOP",
        "stop",
        " Stop. ",
        "“Stop!!”",
        "\n\tSTOP\n",
        "STOP \U0001f6d1",
        "\u200bSTOP\ufeff",
        "\uff33\uff34\uff2f\uff30",
        "stopall",
        "Stop all",
        "STOP-ALL",
        "unsubscribe",
        "Cancel",
        "end",
        "Quit.",
        "OptOut",
        "opt out",
        "Opt-Out",
        "Opt\u2013out",
        "opt\u2011out",
        "opt_out",
        "STOP" + "\r\n" * 200,
        "(revoke)",
        "Arrêt",
    ],
)
def test_texts_that_only_say_stop(text: str) -> None:
    assert is_stop(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "...",
        "stop it",
        "please stop",
        "Stop by at 5?",
        "Don't stop",
        "The end",
        "weekend",
        "non-stop",
        "cancel my order",
        "st op",
        "S T O P",
        "STOP2",
        "START",
        "UNSTOP",
        "yes",
        "END" * 50,
        "STOP" + "!" * 200,
    ],
)
def test_texts_that_say_something_else(text: str) -> None:
    assert not is_stop(text)


_AROUND = st.text(st.sampled_from(" \t\n.,!?;:-_'\"()*#“”…"), max_size=6)


@given(st.sampled_from(sorted(STOP_WORDS)), _AROUND, _AROUND, st.integers(0, 2**20))
def test_neither_case_nor_what_stands_around_matters(
    word: str, before: str, after: str, bits: int
) -> None:
    mixed = "".join(c.lower() if bits >> nth & 1 else c for nth, c in enumerate(word))
    assert is_stop(f"{before}{mixed}{after}")


@given(st.sampled_from(sorted(STOP_WORDS)), st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True))
def test_with_another_word_it_says_something_else(word: str, other: str) -> None:
    for text in (f"{word} {other}", f"{other}, {word}", f"{word}{other}", f"{other}{word}"):
        if text.upper() not in STOP_WORDS:
            assert not is_stop(text)


@given(st.text(max_size=150))
def test_whatever_is_written_it_is_one_or_the_other(text: str) -> None:
    assert is_stop(text) in (True, False)


# Numbers


@pytest.mark.parametrize(
    ("number", "digits"),
    [
        ("+15551230001", "5551230001"),
        ("+12125550100", "2125550100"),
        ("+11235550100", None),
        ("+1555123000", None),
        ("+155512300011", None),
        ("+445551230001", None),
        ("5551230001", None),
        ("15551230001", None),
        ("+1 555 123 0001", None),
        ("+1555123000\u0661", None),
        ("+15551230001\n", None),
        ("", None),
        (None, None),
    ],
)
def test_only_plus_one_has_ten_digits(number: str | None, digits: str | None) -> None:
    assert ten_digits(number) == digits


# Messages and consents


def decide_message(**more: Any) -> Decision:
    return of_message("acme", Message.model_validate({"raw": {}, **message(), **more}))


def test_an_inbound_stop_puts_its_number_on_the_list_whatever_became_of_it() -> None:
    [command] = decide_message().commands
    assert isinstance(command, Dnc)
    assert command.number == "5551230001"
    assert decide_message(status="delivered").commands == (command,)
    assert decide_message(message_id="m2").commands != (command,)
    same = Message.model_validate({"raw": {}, **message()})
    assert of_message("beta", same).commands != (command,), "ids are those of a connection"


@pytest.mark.parametrize(
    ("more", "nothing"),
    [
        ({"direction": "outbound"}, "not_inbound"),
        ({"direction": "unknown"}, "not_inbound"),
        ({"internal": True}, "internal"),
        ({"text": None}, "no_text"),
        ({"text": "hello"}, "not_stop"),
        ({"from_number": None}, "no_number"),
    ],
)
def test_other_messages_come_to_nothing(more: dict[str, Any], nothing: str) -> None:
    assert decide_message(**more) == Decision(nothing=nothing)


def test_a_number_elsewhere_is_refused() -> None:
    assert decide_message(from_number="+447700900001") == Decision(outside=1)
    assert decide_message(from_number="72645") == Decision(outside=1)


def test_a_consent_that_was_taken_back_and_none_that_was_given() -> None:
    made = Consent.model_validate({"raw": {}, **consent()})
    [command] = of_consent("id", made).commands
    assert isinstance(command, Dnc)
    assert command.number == "5551230001"
    assert "5551230001" not in command.key
    for state in ("opted_in", "unknown"):
        given_back = Consent.model_validate({"raw": {}, **consent(state)})
        assert of_consent("id", given_back) == Decision(nothing=state)


# Conversations


def decide_conversation(*, dial: bool = False, **more: Any) -> Decision:
    made = Conversation.model_validate({**conversation(), **more})
    return of_conversation("acme", made, dial=dial, zone=NEW_YORK)


def test_a_conversation_that_is_complete_and_was_missed_is_a_lead() -> None:
    [lead] = decide_conversation().commands
    assert isinstance(lead, Lead)
    assert lead.number == "5551230001"
    assert not lead.dial
    assert lead.client_id.startswith("dialstream-")
    assert len(lead.client_id) <= 50
    assert lead.fields == {
        "FirstName": "Example",
        "LastName": "Customer",
        "Notes": "Missed call 09/21/2026 10:13:20",
    }
    [later] = decide_conversation(recap={"summary": "more came"}, verdicts=["v"]).commands
    assert later == lead
    [other] = decide_conversation(conversation_id="1102").commands
    assert isinstance(other, Lead)
    assert other.client_id != lead.client_id
    same = Conversation.model_validate(conversation())
    [elsewhere] = of_conversation("beta", same, dial=False, zone=NEW_YORK).commands
    assert isinstance(elsewhere, Lead)
    assert elsewhere.client_id != lead.client_id, "ids are those of a connection"
    assert elsewhere.key != lead.key


def test_what_was_joined_is_known_by_its_former_names() -> None:
    [former] = decide_conversation(conversation_id="1102").commands
    [joined] = decide_conversation(merged_from=["1102"]).commands
    assert isinstance(former, Lead)
    assert isinstance(joined, Lead)
    assert joined.former == ((former.key, former.client_id),)


@pytest.mark.parametrize(
    ("more", "nothing"),
    [
        ({"complete": False}, "not_complete"),
        ({"outcome": None}, "not_missed"),
        ({"outcome": "answered"}, "not_missed"),
        ({"outcome": "voicemail"}, "not_missed"),
        ({"outcome": "unanswered", "direction": "outbound"}, "not_missed"),
        ({"direction": "outbound"}, "not_inbound"),
        ({"direction": "internal"}, "not_inbound"),
        ({"external": {"number": None, "withheld": True}}, "no_number"),
    ],
)
def test_other_conversations_are_no_leads(more: dict[str, Any], nothing: str) -> None:
    assert decide_conversation(dial=True, **more) == Decision(nothing=nothing)


def test_a_caller_from_elsewhere_is_refused() -> None:
    assert decide_conversation(external={"number": "+447700900001"}) == Decision(outside=1)


def test_who_has_no_name_is_not_called_by_a_number() -> None:
    [lead] = decide_conversation(
        external={"number": "+15551230001", "name": "(555) 123-0001"}, started_at=None
    ).commands
    assert isinstance(lead, Lead)
    assert lead.fields == {}


# Contacts


def decide_contact(*numbers: str, **more: Any) -> Decision:
    made = Contact.model_validate({"raw": {}, **contact(*numbers), **more})
    return of_contact("id", made, NAMES)


def test_a_contact_sets_the_names_of_each_of_its_numbers() -> None:
    found = decide_contact("+15551230001", "+15551230002", "+15551230001")
    fields = {"FirstName": "New", "LastName": "Name"}
    assert [(each.action, each.number) for each in found.commands] == [
        ("UpdateLead", "5551230001"),
        ("UpdateLead", "5551230002"),
    ]
    assert all(isinstance(each, Update) and each.fields == fields for each in found.commands)
    assert len({each.key for each in found.commands}) == 2


def test_what_a_contact_lacks_is_left_as_it_is() -> None:
    [update] = decide_contact(last_name=None).commands
    assert isinstance(update, Update)
    assert update.fields == {"FirstName": "New"}
    assert decide_contact(first_name=None, last_name="") == Decision(nothing="no_names")
    assert decide_contact(phone_numbers=[]) == Decision(nothing="no_number")
    assert decide_contact(change="deleted") == Decision(nothing="deleted")


def test_numbers_elsewhere_are_refused_beside_those_that_are_not() -> None:
    found = decide_contact("+15551230001", "+447700900001")
    assert (len(found.commands), found.outside) == (1, 1)


def test_other_fields_are_a_setting() -> None:
    made = Contact.model_validate(
        {"raw": {}, **contact(), "company_name": "Example Ltd", "emails": ["a@example.com"]}
    )
    [update] = of_contact("id", made, {"company_name": "adv_Company", "email": "Email"}).commands
    assert isinstance(update, Update)
    assert update.fields == {"adv_Company": "Example Ltd", "Email": "a@example.com"}


# As they are set


def rules(since_ms: int = 0, **sink: Any) -> Rules:
    table = {"provider": "dialedin", "account_id": "example", "sink": sink}
    return Rules(Connection.model_validate(table), dict.fromkeys(SINK_RULES, since_ms))


def decide(given: Rules, made: Event, now_ms: int = AT_MS) -> Decision:
    return given.decide(told(made), lambda: now_ms)[1]


def test_what_was_recorded_before_a_rule_was_on_is_none_of_its_business() -> None:
    for data in (message(), consent(), conversation(), contact()):
        assert decide(rules(AT_MS), event(data)).commands
        later = decide(rules(AT_MS + 1), event(data))
        assert later == Decision(nothing="before_the_rule")


def test_nobody_is_called_back_out_of_the_blue() -> None:
    for age_ms, dial in ((0, True), (DIAL_WITHIN_MS, True), (DIAL_WITHIN_MS + 1, False)):
        found = decide(rules(lead_dial=True), event(conversation()), AT_MS + age_ms)
        [lead] = found.commands
        assert isinstance(lead, Lead)
        assert lead.dial is dial


def test_a_call_that_was_over_long_ago_is_old_however_late_it_was_recorded() -> None:
    """As when it is read back, or when its transcript comes."""
    old_ms = AT_MS - DIAL_WITHIN_MS - 1
    late = event(conversation(), at_ms=AT_MS, over_ms=old_ms)
    [lead] = decide(rules(lead_dial=True), late).commands
    assert isinstance(lead, Lead)
    assert not lead.dial
    assert decide(rules(old_ms, lead_dial=True), late).commands
    assert decide(rules(old_ms + 1), late) == Decision(nothing="before_the_rule")
    # Nor does a clock that is ahead make it newer.
    ahead = event(conversation(), at_ms=AT_MS, over_ms=AT_MS + 10 * DIAL_WITHIN_MS)
    [lead] = decide(rules(lead_dial=True), ahead, AT_MS + DIAL_WITHIN_MS + 1).commands
    assert isinstance(lead, Lead)
    assert not lead.dial


@given(
    st.fixed_dictionaries(
        {
            "conversation_id": st.text(min_size=1, max_size=60),
            "complete": st.booleans(),
            "outcome": st.sampled_from(["missed", "answered", "voicemail", None]),
            "direction": st.sampled_from(["inbound", "outbound", "internal", "unknown"]),
            "external": st.fixed_dictionaries(
                {
                    "number": st.sampled_from(
                        ["+15551230001", "+447700900001", None, "5551230001"]
                    ),
                    "name": st.none() | st.text(max_size=40),
                }
            ),
            "merged_from": st.lists(st.text(min_size=1, max_size=10), max_size=3),
        }
    ),
    st.integers(-(10**9), 10**9),
)
def test_without_lead_dial_nobody_rings(more: dict[str, Any], age_ms: int) -> None:
    found = decide(rules(), event(conversation() | more), AT_MS + age_ms)
    assert all(isinstance(each, Lead) and not each.dial for each in found.commands)
    if found.commands:
        assert (more["outcome"], more["direction"], more["complete"]) == ("missed", "inbound", True)
