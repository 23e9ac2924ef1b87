"""Contacts of DialLink are compared as Dialpad's are, whatever stands in their ids."""

import json
from pathlib import Path

import pytest

from consumers.poll.poller import became, deleted_contact
from consumers.poll.seen import Seen, fact_of
from ingest.providers.diallink.record_events import contact_listed
from ingest.reading import Reading
from schemas.contact import Contact
from schemas.event import Event, encode

BEGIN_MS = 1_790_000_000_000
MINUTE_MS = 60_000


def listed(contact_id: str, *, at_ms: int = BEGIN_MS, first_name: str = "Ada") -> Event:
    item = {
        "id": contact_id,
        "type": "EXTERNAL",
        "firstName": first_name,
        "lastName": "Example",
        "shared": True,
        "phoneNumbers": [{"id": "1", "type": "WORK", "phoneNumber": "+15551230001"}],
    }
    (event,) = Reading("diallink", "line", "US", "poll", at_ms).events(
        [json.dumps(item).encode()], contact_listed
    )
    return event


@pytest.mark.parametrize("contact_id", ["c0ffee00-0000-4000-8000-000000000001", "a:b%c", "-"])
def test_what_is_known_of_a_contact_is_its_id_and_its_content(contact_id: str) -> None:
    event = listed(contact_id)
    later = listed(contact_id, at_ms=BEGIN_MS + 5 * MINUTE_MS)
    assert event.id != later.id
    assert fact_of(event) == fact_of(later)
    assert fact_of(event) != fact_of(listed(contact_id, first_name="Grace"))
    created = became(event, "created")
    assert created.type == "dialstream.contact.created"
    assert created.data["change"] == "created"
    assert created.id == event.id.replace(":updated:", ":created:")
    assert created.subject == event.subject
    assert fact_of(created) == fact_of(event)


@pytest.mark.parametrize("contact_id", ["c0ffee00-0000-4000-8000-000000000001", "a:b%c", "-"])
def test_one_that_is_gone_is_told_by_what_is_remembered(tmp_path: Path, contact_id: str) -> None:
    seen = Seen.open(tmp_path / "poll.sqlite")
    turn = seen.begin("contacts")
    event = listed(contact_id)
    seen.remember("contacts", [event])
    for _ in range(2):
        turn = seen.begin("contacts")
        gone = seen.missing("contacts", turn)
    ((subject, fact),) = gone
    deleted = deleted_contact("line", subject, fact, BEGIN_MS + MINUTE_MS)
    head, _, digest, _ = event.id.rsplit(":", 3)
    assert deleted.id == f"{head}:deleted:{digest}:202609211414"
    assert deleted.subject == event.subject
    assert deleted.key == event.key
    assert deleted.data["contact_id"] == event.data["contact_id"]
    assert b'"raw":null' in encode(deleted)
    Contact.model_validate({**deleted.data, "raw": None})
    seen.close()
