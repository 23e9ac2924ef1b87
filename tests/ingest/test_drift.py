"""The drift radar: what is new at the providers is remembered, and nothing of its content."""

import json
from itertools import islice, product
from pathlib import Path
from string import ascii_lowercase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.poll.loops import Storing
from ingest.drift import MAX_A_CONNECTION, OTHERS, Radar, all_sightings, drift_folder, look_of
from ingest.eventlog.journal import open_journal
from schemas.event import Event
from tests.conftest import MakeProduct
from tests.kit import OTHER_SECRET, SECRET, call, new_leg, sign

T0 = 1_790_000_000_000


def event(*surprises: tuple[str, str], at_ms: int = T0, raw: bytes | None = None) -> Event:
    return Event(
        type="dialstream.call.ringing",
        subject_kind="call",
        id="dialpad:acme:call:1:ringing:1",
        subject="call/1",
        key="acme/1",
        time_ms=at_ms,
        recorded_ms=at_ms,
        via="webhook",
        provider="dialpad",
        connection="acme",
        data={},
        raw=raw,
        surprises=surprises,
    )


def names(count: int) -> list[str]:
    """Different ones, without digits."""
    return ["".join(letters) for letters in islice(product(ascii_lowercase, repeat=3), count)]


async def test_what_is_new_is_counted_and_outlives_the_process(tmp_path: Path) -> None:
    file = drift_folder(tmp_path) / "receiver.json"
    radar = Radar()
    radar.open(file)
    radar.note(event(("field", "mood"), raw=b'{"mood": "Great 1"}'))
    radar.note(event(("field", "mood"), ("state", "levitating"), at_ms=T0 + 5))
    await radar.save()

    again = Radar()
    again.open(file)
    again.note(event(("state", "levitating"), at_ms=T0 + 9))
    await again.save()

    # Another process has seen one of them, earlier.
    other = Radar()
    other.open(drift_folder(tmp_path) / "up.json")
    other.note(event(("state", "levitating"), at_ms=T0 - 7))
    await other.save()

    assert [
        (seen.what, seen.name, seen.first_ms - T0, seen.last_ms - T0, seen.count, seen.sample)
        for seen in all_sightings(tmp_path)[0]
    ] == [
        ("field", "mood", 0, 5, 2, 'text "Xxxxx 9"'),
        ("state", "levitating", -7, 9, 3, ""),
    ]


async def test_names_made_of_content_fill_nothing(tmp_path: Path) -> None:
    radar = Radar()
    radar.open(drift_folder(tmp_path) / "receiver.json")
    for name in names(3 * MAX_A_CONNECTION):
        radar.note(event(("field", name)))
    # What is beyond is one more, so that the operator knows that there is more.
    assert radar.counts == {"acme": MAX_A_CONNECTION + 1}
    await radar.save()
    (others,) = (seen for seen in all_sightings(tmp_path)[0] if seen.name == OTHERS)
    assert (others.what, others.count) == ("field", 2 * MAX_A_CONNECTION)

    # Still so after a restart.
    again = Radar()
    again.open(drift_folder(tmp_path) / "receiver.json")
    again.note(event(("field", "yet_another")))
    assert again.counts == {"acme": MAX_A_CONNECTION + 1}


async def test_one_event_with_a_crowd_of_new_names_costs_little(tmp_path: Path) -> None:
    radar = Radar()
    radar.open(drift_folder(tmp_path) / "receiver.json")
    radar.note(event(*(("field", name) for name in names(1000))))
    assert radar.counts == {"acme": 100}


async def test_what_is_read_back_is_looked_at_as_what_is_pushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    radar = Radar()
    monkeypatch.setattr("ingest.metrics.RADAR", radar)
    read = event(("field", "mood"), raw=b"{}")
    async with open_journal(tmp_path) as journal:
        storing = Storing("acme", journal)
        await storing.page("calls", [read], [])  # it was there the last time
        assert radar.counts == {}
        await storing.page("calls", [read], [read])
    assert radar.counts == {"acme": 1}


@pytest.mark.parametrize(
    ("what", "name", "shown"),
    [
        ("field", "iso_8601", "iso_8601"),
        ("field", "contact_5551230001", 'text "xxxxxxx_9999999999"'),
        ("field", "a1b2c3d4-e5f6", 'text "x9x9x9x9-x9x9"'),
        ("field", "Ärger", 'text "Xxxxx"'),
        ("state", "noAnswer", "noAnswer"),
        ("state", "recap_v2", "recap_v2"),
        ("state", "SMS_failed", "SMS_failed"),
        ("state", "call centre closed early", "call centre closed early"),
        ("state", "please call me back today", 'text "xxxxxx xxxx xx xxxx xxxxx"'),
        ("state", "+15551230001", 'text "+99999999999"'),
    ],
)
async def test_a_name_is_shown_if_it_is_one(
    tmp_path: Path, what: str, name: str, shown: str
) -> None:
    radar = Radar()
    radar.open(drift_folder(tmp_path) / "receiver.json")
    radar.note(event((what, name)))
    await radar.save()
    assert [seen.name for seen in all_sightings(tmp_path)[0]] == [shown]


@pytest.mark.parametrize(
    "raw",
    [
        b'{"mood": "Great 1"}',
        b'{"contact": {"mood": "Great 1"}, "mind": {"mood_of": 7}}',
        b'{"data": {"items": [{"id": 1}, {"of": {"mood": "Great 1"}}]}}',
    ],
)
async def test_a_sample_is_taken_at_any_depth(tmp_path: Path, raw: bytes) -> None:
    radar = Radar()
    radar.open(drift_folder(tmp_path) / "receiver.json")
    radar.note(event(("field", "mood"), raw=raw))
    await radar.save()
    assert [seen.sample for seen in all_sightings(tmp_path)[0]] == ['text "Xxxxx 9"']


async def test_what_could_not_be_written_is_written_the_next_time(tmp_path: Path) -> None:
    (tmp_path / "drift").write_bytes(b"")  # no folder
    radar = Radar()
    radar.open(drift_folder(tmp_path) / "receiver.json")
    radar.note(event(("field", "mood")))
    with pytest.raises(OSError, match="drift"):
        await radar.save()
    (tmp_path / "drift").unlink()
    await radar.save()
    assert [seen.name for seen in all_sightings(tmp_path)[0]] == ["mood"]


def test_a_damaged_file_is_begun_anew(tmp_path: Path) -> None:
    file = drift_folder(tmp_path) / "receiver.json"
    file.parent.mkdir()
    file.write_bytes(b'[{"provider": 1')
    radar = Radar()
    radar.open(file)
    assert radar.counts == {}


def test_a_file_that_cannot_be_read_is_no_sign_that_nothing_is_new(
    make_product: MakeProduct,
) -> None:
    product = make_product()
    file = drift_folder(product.data) / "receiver.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(b'[{"provider": 1')
    for options in ([], ["--json"]):
        ran = product.run("drift", *options)
        assert (ran.code, ran.stdout) == (1, "")
        assert "receiver.json cannot be read" in ran.stderr


@pytest.mark.parametrize(
    ("value", "look"),
    [
        (None, "null"),
        (True, "boolean"),
        (-1234, "integer of 4 digits"),
        (1.5, "number"),
        ("+1 (415) Xy\n", 'text "+9 (999) Xx?"'),
        ("so \N{PENSIVE FACE} नि", 'text "xx ? x?"'),
        ("a" * 41, f'text "{"x" * 40}…"'),
        ([], "list of 0"),
        ([1, "b"], "list of 2, first integer of 1 digits"),
        ({"a": 1}, "object of 1"),
    ],
)
def test_a_value_is_shown_by_its_looks(value: object, look: str) -> None:
    assert look_of(value) == look


@given(st.text(st.characters(categories=["L", "N"]), min_size=1))
def test_no_letter_of_a_text_is_shown(text: str) -> None:
    assert set(look_of(text)) <= set('text "Xx9?…')


def test_an_operator_sees_what_has_changed_and_no_content(make_product: MakeProduct) -> None:
    secrets = {"acme": SECRET, "beta": OTHER_SECRET}
    connections = {name: {"provider": "dialpad", "secrets": [its]} for name, its in secrets.items()}
    product = make_product(settings={"connections": connections})
    assert product.run("drift").code == 0
    leg = new_leg()
    with product:
        odd = {**call(leg, 0), "state": "levitating", "mood": "SECRETMOOD", "contact": "SECRETNAME"}
        for body in (sign(odd), sign(odd), sign({**odd, "state": "ringing", "my name": 1})):
            assert product.post(body).status == 204
        assert product.metrics().sum("dialstream_drift", connection="acme") == 4
        assert len(product.log("drift_seen")) == 4
        assert product.stop() == 0

    shown = product.run("drift", "--json")
    assert shown.code == 1
    found = {
        (seen["what"], seen["name"]): (seen["count"], seen["sample"])
        for seen in map(json.loads, shown.stdout.splitlines())
    }
    assert found == {
        ("state", "levitating"): (1, ""),  # the second was a repeat
        ("field", "mood"): (2, 'text "XXXXXXXXXX"'),
        ("type", "contact"): (2, 'text "XXXXXXXXXX"'),
        ("field", 'text "xx xxxx"'): (1, "integer of 1 digits"),
    }
    table = product.run("drift")
    assert "new state" in table.stdout
    assert "levitating" in table.stdout
    assert "SECRET" not in shown.stdout + table.stdout + product.stderr
    assert product.run("drift", "--since", "2100-01-01").code == 0
    assert product.run("drift", "--connection", "beta").stdout.startswith("Nothing new")
