"""What `privacy.drop` keeps off the log, and what it changes of nothing else."""

import json
from typing import Any

import pytest

from ingest.privacy import Drops, writable
from ingest.settings import load_settings
from schemas.event import Event, encode
from schemas.export import PUBLISHED
from schemas.subjects import SUBJECTS
from tests.conftest import MakeProduct
from tests.kit import SECRET, samples, sign

BOTH: Drops = {"acme": frozenset(("content", "raw"))}

RAW: Drops = {"acme": frozenset(("raw",))}


def event(kind: str, data: dict[str, Any]) -> Event:
    return Event(
        type=f"dialstream.{kind}.told",
        subject_kind=kind,
        id="1",
        subject=f"{kind}/1",
        key="acme/1",
        time_ms=1,
        recorded_ms=1,
        via="webhook",
        provider="dialpad",
        connection="acme",
        data=data,
        raw=b'{"said": "WORDS"}',
    )


def test_what_was_said_goes_and_what_is_known_of_it_stays() -> None:
    call = event(
        "call",
        {
            "call_id": "1",
            "voicemail": {"text": "WORDS", "duration_s": 3.0},
            "transcript": {"url": "u", "lines": ["WORDS"]},
            "recap": {"summary": "WORDS", "purposes": ["WORDS"], "action_items": []},
            "labels": ["sales"],
        },
    )
    assert writable(call, BOTH).data == {
        "call_id": "1",
        "voicemail": {"text": None, "duration_s": 3.0},
        "transcript": {"url": "u", "lines": []},
        "recap": {"summary": None, "purposes": [], "action_items": []},
        "labels": ["sales"],
    }
    assert call.data["voicemail"]["text"] == "WORDS"  # of the event itself nothing is gone
    assert json.loads(encode(writable(call, BOTH)))["data"]["raw"] is None


def test_what_nobody_has_read_goes_with_the_rest_of_it() -> None:
    told = {"action": "added", "note": "WORDS", "details": {"said": "WORDS"}}
    assert writable(event("change", told), RAW).data == {**told, "details": None}
    assert writable(event("change", told), BOTH).data == {
        "action": "added",
        "note": None,
        "details": None,
    }
    other = {"notification_type": "fax.received", "details": {"said": "WORDS"}}
    assert writable(event("notification", other), RAW).data == {**other, "details": None}


def classed(subject: str) -> dict[str, str]:
    """Place → class, as readers find it in the published schema."""
    document = json.loads((PUBLISHED / f"{subject}.1.json").read_bytes())
    found = {}

    def look(at: Any, place: str) -> None:
        if isinstance(at, list):
            for each in at:
                look(each, place)
        if not isinstance(at, dict):
            return
        if "x-privacy" in at:
            found[place] = at["x-privacy"]
        if "$ref" in at:
            look(document["$defs"][at["$ref"].rpartition("/")[2]], place)
        for word in ("anyOf", "allOf", "items"):
            look(at.get(word), place)
        for name, inner in at.get("properties", {}).items():
            look(inner, f"{place}.{name}".lstrip("."))

    look(document, "")
    return found


ARTEFACTS = {
    "voicemail.text": "content",
    "transcript.lines": "content",
    "recap.summary": "content",
    "recap.outcome": "content",
    "recap.purposes": "content",
    "recap.action_items": "content",
}


def test_every_text_that_somebody_has_said_or_written_has_its_class() -> None:
    assert {subject: of for subject in SUBJECTS if (of := classed(subject))} == {
        "call": {**ARTEFACTS, "custom_data": "content", "raw": "raw"},
        "message": {"text": "content", "raw": "raw"},
        "contact": {"raw": "raw"},
        "agent": {"raw": "raw"},
        "change": {"note": "content", "details": "raw", "raw": "raw"},
        "consent": {"raw": "raw"},
        "directory": {"raw": "raw"},
        "notification": {"details": "raw", "raw": "raw"},
        "conversation": ARTEFACTS,
    }


def test_a_connection_that_drops_nothing_is_left_alone() -> None:
    message = event("message", {"text": "WORDS"})
    assert writable(message, {"beta": BOTH["acme"]}) is message
    only_raw = writable(message, RAW)
    assert (only_raw.data, only_raw.raw) == ({"text": "WORDS"}, b"null")


def test_a_reject_keeps_its_bytes() -> None:
    reject = event("reject", {"body_base64": "AAAA"})
    assert writable(reject, BOTH) is reject


@pytest.mark.parametrize("subject", sorted(SUBJECTS))
def test_every_subject_can_do_without(subject: str) -> None:
    assert writable(event(subject, {}), BOTH).data == {}


def test_content_alone_is_refused_since_raw_holds_it(make_product: MakeProduct) -> None:
    product = make_product()
    product.config.write_text(
        '[connections.acme]\nprovider = "dialpad"\nsecrets = ["' + SECRET + '"]\n'
        '[connections.acme.privacy]\ndrop = ["content"]\n'
    )
    ran = product.run("config", "show")
    assert ran.code == 2
    assert 'write ["content", "raw"]' in ran.stderr


def test_texts_are_on_the_log_without_their_words_under_the_same_ids(
    make_product: MakeProduct,
) -> None:
    told = [samples()[name] for name in ("sms-inbound-user", "call-recap-summary")]
    streams = []
    for name, drop in (("whole", []), ("private", ["raw", "content"])):
        product = make_product(name)
        settings = {"provider": "dialpad", "secrets": [SECRET], "privacy": {"drop": drop}}
        product.configure({"connections": {"acme": settings}})
        with product:
            for payload in told:
                assert product.post(sign(payload)).status == 204
            # Another content under the same id is no repeat, though both look alike on the log.
            assert product.post(sign({**told[0], "mms": True})).status == 204
            assert product.metrics().outcomes()["stored"] == 3
            streams.append(product.events())
    whole, private = streams
    assert [each["id"] for each in private] == [each["id"] for each in whole]
    message = next(each for each in private if each["type"] == "dialstream.message.received")
    assert message["data"]["text"] is None
    assert message["data"]["from_number"] == told[0]["from_number"]
    assert all(each["data"]["raw"] is None for each in private)
    for words in (told[0]["text"], told[1]["recap_summary"]):
        assert words in json.dumps(whole)
        assert words not in json.dumps(private)


def test_the_setting_is_read_by_connection(make_product: MakeProduct) -> None:
    product = make_product()
    product.configure(
        {
            "connections": {
                "acme": {"provider": "dialpad", "secrets": [SECRET]},
                "beta": {
                    "provider": "dialpad",
                    "secrets": [SECRET],
                    "privacy": {"drop": ["raw"]},
                },
            }
        }
    )
    assert load_settings(product.config).drops == {"beta": {"raw"}}
