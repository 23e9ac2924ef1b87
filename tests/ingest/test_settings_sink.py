"""Settings of what a provider is told: what is wrong is told, and nothing is on by itself."""

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from ingest.errors import ConfigError
from ingest.settings import Settings, load_settings

FLOOR: dict[str, Any] = {"provider": "dialedin", "api_key": "token", "account_id": "example"}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(table: dict[str, Any], **environ: str) -> Settings:
    Path("test.toml").write_text(tomli_w.dumps({"connections": {"floor": table}}))
    variables = {f"DIALSTREAM_CONNECTIONS__FLOOR__{name}": text for name, text in environ.items()}
    return load_settings(Path("test.toml"), variables)


def test_everything_is_off_and_the_zone_is_that_of_its_maker() -> None:
    floor = load(FLOOR).connections["floor"]
    assert floor.sink.rules == ()
    assert not floor.sink.lead_dial
    assert floor.sink.requests_per_s == 2
    assert floor.timezone == "America/New_York"
    assert not floor.polled
    assert load({"provider": "dialpad", "secrets": ["x"]}).connections["floor"].timezone is None


def test_rules_come_from_variables_too() -> None:
    settings = load(FLOOR, SINK__DNC_ON_STOP="true", TIMEZONE="America/Chicago")
    assert settings.connections["floor"].sink.rules == ("dnc_on_stop",)
    assert settings.connections["floor"].timezone == "America/Chicago"


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"account_id": None}, "account_id"),
        ({"account_id": "https://example.com"}, "account_id"),
        ({"api_key": None}, "api_key"),
        ({"timezone": "Moon/Base"}, "timezone"),
        ({"sink": {"lead_on_missed": True}}, "sink.lead_campaign"),
        ({"sink": {"lead_on_missed": True, "lead_campaign": " "}}, "sink.lead_campaign"),
        ({"sink": {"lead_on_missed": True, "lead_campaign": "x" * 51}}, "sink.lead_campaign"),
        ({"sink": {"lead_dial": True}}, "sink.lead_dial"),
        ({"sink": {"requests_per_s": 0}}, "sink.requests_per_s"),
        ({"sink": {"dnc_on_stopp": True}}, "sink.dnc_on_stopp"),
        ({"stream": {"enabled": True}}, "stream.enabled"),
        ({"poll": {"enabled": True}}, "poll.enabled"),
        ({"poll": {"also": ["contacts"]}}, "poll.also"),
        ({"secrets": ["a-token-that-is-long-enough"]}, "secrets"),
        ({"assume": {"push": "hmac"}}, "assume.push"),
        ({"assume": {"files": {"inject_lead": "../InjectLead.php"}}}, "assume.files.inject_lead"),
        ({"assume": {"contact_fields": {"first_name": "ImportOnly"}}}, "assume.contact_fields"),
        ({"assume": {"contact_fields": {"first_name": "a b"}}}, "assume.contact_fields"),
        ({"assume": {"contact_fields": {"name": "Name"}}}, "assume.contact_fields.name"),
        ({"assume": {"ok": [""]}}, "assume.ok"),
    ],
    ids=str,
)
def test_what_is_wrong_is_told_by_its_key(more: dict[str, Any], key: str) -> None:
    table = {name: value for name, value in {**FLOOR, **more}.items() if value is not None}
    with pytest.raises(ConfigError) as raised:
        load(table)
    assert any(fault.startswith(f"connections.floor.{key}") for fault in raised.value.faults), (
        raised.value.faults
    )
    assert "a-token-that" not in str(raised.value)


@pytest.mark.parametrize("rule", ["dnc_on_stop", "dnc_on_consent", "update_on_contact"])
def test_who_is_told_nothing_has_no_rules(rule: str) -> None:
    with pytest.raises(ConfigError, match="dialpad is told nothing"):
        load({"provider": "dialpad", "secrets": ["x"], "sink": {rule: True}})
    with pytest.raises(ConfigError, match="account_id"):
        load({"provider": "dialpad", "secrets": ["x"], "account_id": "example"})
