"""What DialedIn is to be told of an event. No I/O, and no clock."""

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TypeAlias
from zoneinfo import ZoneInfo

from msgspec import Struct

from ingest.providers.dialedin.assumptions import ContactField
from schemas.call import Direction, Outcome
from schemas.consent import Consent, ConsentState
from schemas.contact import Contact, ContactChange
from schemas.conversation import Conversation
from schemas.event import digest_of_bytes
from schemas.message import Message

#: What makes a text an opt-out when it is all that the text says: the words that carriers and the
#: makers of their gateways act on, and those of 47 CFR 64.1200(a)(10). ARRET is Canada's.
STOP_WORDS = frozenset(
    (
        *("STOP", "STOPALL", "STOP ALL", "UNSUBSCRIBE", "CANCEL", "END", "QUIT"),
        *("OPTOUT", "OPT OUT", "REVOKE", "ARRET"),
    )
)

#: Longer texts say more than that.
_LONGEST_STOP = 100

#: Whatever is neither letter nor digit.
_BETWEEN = re.compile(r"[\W_]+")

#: What DialedIn takes: the digits behind +1.
_PLUS_ONE = re.compile(r"\+1([2-9][0-9]{9})")


class Dnc(Struct, frozen=True):
    """Put a number on the list of those that are not to be called."""

    #: What was told: the same whenever it is told again.
    key: str
    #: 10 digits.
    number: str
    action: str = "InsertDnc"


class Lead(Struct, frozen=True):
    """Make a lead of a number."""

    key: str
    number: str
    #: Our id of it at DialedIn.
    client_id: str
    fields: Mapping[str, str]
    #: Whether its phone is to ring at once.
    dial: bool
    #: (key, client_id) of leads that would be the same one.
    former: tuple[tuple[str, str], ...] = ()
    action: str = "InjectLead"


class Update(Struct, frozen=True):
    """Set fields of the leads that have a number."""

    key: str
    number: str
    fields: Mapping[str, str]
    action: str = "UpdateLead"


Command: TypeAlias = Dnc | Lead | Update


class Decision(Struct, frozen=True):
    """What follows from an event."""

    commands: tuple[Command, ...] = ()
    #: Why there is no command; a word of a small set.
    nothing: str = ""
    #: So many numbers are not +1, and DialedIn cannot have them.
    outside: int = 0


def of_message(connection: str, message: Message) -> Decision:
    """An inbound text that only says STOP."""
    nothing = ""
    if message.direction is not Direction.INBOUND:
        nothing = "not_inbound"
    elif message.internal:
        nothing = "internal"
    elif message.text is None:
        nothing = "no_text"
    elif not is_stop(message.text):
        nothing = "not_stop"
    if nothing:
        return Decision(nothing=nothing)
    return _dnc(_mark("message", connection, message.message_id), message.from_number)


def of_consent(event_id: str, consent: Consent) -> Decision:
    """A consent that was taken back. One that was given again takes nothing off the list."""
    if consent.state is not ConsentState.OPTED_OUT:
        return Decision(nothing=consent.state.value)
    return _dnc(_mark("consent", event_id), consent.number)


def of_conversation(
    connection: str, conversation: Conversation, *, dial: bool, zone: ZoneInfo
) -> Decision:
    """A conversation that is over and was missed."""
    nothing = ""
    if not conversation.complete:
        nothing = "not_complete"
    elif conversation.outcome is not Outcome.MISSED:
        nothing = "not_missed"
    elif conversation.direction is not Direction.INBOUND:
        nothing = "not_inbound"
    elif not conversation.external.number:
        nothing = "no_number"
    if nothing:
        return Decision(nothing=nothing)
    number = ten_digits(conversation.external.number)
    if number is None:
        return Decision(outside=1)
    key, client_id = _lead(connection, conversation.conversation_id)
    lead = Lead(
        key,
        number,
        client_id,
        dict(_about(conversation, zone)),
        dial,
        tuple(_lead(connection, ident) for ident in conversation.merged_from),
    )
    return Decision((lead,))


def of_contact(event_id: str, contact: Contact, names: Mapping[ContactField, str]) -> Decision:
    """A contact whose names may have changed. ``names``: field of ours → field of a lead.

    What a contact does not have is left as it is.
    """
    if contact.change is ContactChange.DELETED:
        return Decision(nothing="deleted")
    told: Mapping[ContactField, str | None] = {
        "first_name": contact.first_name,
        "last_name": contact.last_name,
        "display_name": contact.display_name,
        "company_name": contact.company_name,
        "job_title": contact.job_title,
        "email": next(iter(contact.emails), None),
    }
    fields = {theirs: text for ours, theirs in names.items() if (text := told[ours])}
    numbers = dict.fromkeys(each.number for each in contact.phone_numbers)
    if not fields or not numbers:
        return Decision(nothing="no_names" if numbers else "no_number")
    inside = [digits for number in numbers if (digits := ten_digits(number))]
    return Decision(
        tuple(Update(_mark("contact", event_id, number), number, fields) for number in inside),
        outside=len(numbers) - len(inside),
    )


def is_stop(text: str) -> bool:
    """Whether a text says nothing but one of `STOP_WORDS`, whatever stands around it."""
    text = text.strip()
    if len(text) > _LONGEST_STOP:
        return False
    plain = "".join(
        char
        for char in unicodedata.normalize("NFKD", text)
        if not unicodedata.category(char).startswith(("M", "C")) or char.isspace()
    )
    return _BETWEEN.sub(" ", plain).strip().upper() in STOP_WORDS


def ten_digits(number: str | None) -> str | None:
    """A number as DialedIn has it; None if it is no number of +1."""
    found = _PLUS_ONE.fullmatch(number or "")
    return found and found[1]


def opt_out_pending(number: str) -> str:
    """The key under which it stands that a number (10 digits) is still to be put on the list."""
    return _mark("opt-out", number)


def _dnc(key: str, number: str | None) -> Decision:
    if not number:
        return Decision(nothing="no_number")
    digits = ten_digits(number)
    return Decision(outside=1) if digits is None else Decision((Dnc(key, digits),))


def _lead(connection: str, conversation_id: str) -> tuple[str, str]:
    """(key, our id at DialedIn) of a conversation's lead; the id has 27 of the 50 letters."""
    ident = digest_of_bytes(f"{connection}/{conversation_id}".encode())
    return _mark("conversation", connection, conversation_id), f"dialstream-{ident}"


def _mark(*parts: str) -> str:
    """A key that tells nothing: ids may hold numbers."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _about(conversation: Conversation, zone: ZoneInfo) -> Iterator[tuple[str, str]]:
    name = " ".join((conversation.external.name or "").split())
    if any(char.isalpha() for char in name):  # who is not known may be called by a number
        first, _, last = name.partition(" ")
        yield "FirstName", first
        if last:
            yield "LastName", last
    if conversation.started_at is not None:
        yield "Notes", f"Missed call {_local(conversation.started_at, zone)}"


def _local(at: datetime, zone: ZoneInfo) -> str:
    """As DialedIn writes times, in its account's zone."""
    return at.astimezone(zone).strftime("%m/%d/%Y %H:%M:%S")
