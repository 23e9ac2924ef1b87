"""A record made straight is the one that an event would come to."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.reconcile.envelope import derived_record
from ingest.derived import derived_event
from ingest.eventlog.log import records_of

T0 = 1_789_999_200_000

texts = st.text(max_size=12)


@pytest.mark.parametrize("type_", ["verdict.matched", "conversation.updated"])
@given(connection=texts, ident=texts, name=texts, at_ms=st.integers(0, 253_402_300_799_999))
def test_it_is_byte_for_byte_what_an_event_comes_to(
    type_: str, connection: str, ident: str, name: str, at_ms: int
) -> None:
    data = {"name": name, "seconds": 1.5, "differences": []}
    event = derived_event(
        connection,
        type_,
        ident,
        subject=f"call/{name}",
        key=f"{connection}/{name}",
        at_ms=at_ms,
        data=data,
    )
    made = derived_record(
        connection,
        type_,
        ident,
        about="call",
        name=name,
        at_ms=at_ms,
        data=orjson.dumps(data),
    )
    assert [made] == records_of(event)
