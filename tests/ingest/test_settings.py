"""One file, the environment above it, all faults at once, and no secret in any word of it."""

import json
import os
import re
import stat
import tomllib
from pathlib import Path
from signal import SIGHUP
from typing import Any, get_args, get_origin

import pytest
import tomli_w
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from ingest.errors import ConfigError
from ingest.providers import PROVIDERS
from ingest.providers.dialgood.assumptions import Assumptions as OfDialgood
from ingest.providers.diallink.assumptions import Assumptions as OfDialLink
from ingest.settings import (
    Connection,
    Settings,
    in_force,
    load_settings,
    read_secret,
)
from tests.conftest import MakeProduct
from tests.kafka.certificates import make_certificates
from tests.kit import (
    OTHER_SECRET,
    PROJECT,
    SECRET,
    assert_no_traceback,
    call,
    new_leg,
    request,
    run,
    sign,
)

EXAMPLES = sorted((PROJECT / "deploy" / "examples").glob("*.toml"))
ACME: dict[str, Any] = {"provider": "dialpad", "secrets": [SECRET]}
LINE: dict[str, Any] = {"provider": "diallink", "api_key": "key"}
BOTS: dict[str, Any] = {"provider": "dialgood", "api_key": "key"}
#: As the specification of Standard Webhooks has it.
WHSEC = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(values: dict[str, Any] | str = "", **environ: str) -> Settings:
    """Settings of a file and variables that are named without their prefix."""
    text = values if isinstance(values, str) else tomli_w.dumps(values)
    Path("test.toml").write_text(text)
    variables = {f"DIALSTREAM_{name}": value for name, value in environ.items()}
    return load_settings(Path("test.toml"), variables)


def faults(values: dict[str, Any] | str = "", **environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as raised:
        load(values, **environ)
    return raised.value.faults


# Faults


def test_all_faults_are_told_at_once_each_with_its_key() -> None:
    found = faults(
        {
            "reciever": {"port": 1},
            "receiver": {"port": "many", "prot": 1},
            "admin": {"port": 70_000},
            "eventlog": {"kind": "paper", "journal_max_bytes": -1},
            "logging": {"level": "loud"},
            "connections": {
                "acme": {"provider": "dialpat", "secrets": ["x"]},
                "Bad-Name": {"provider": "dialpad", "secrets": ["x"]},
                "bare": {"provider": "dialpad"},
                "empty": {"provider": "dialpad", "secrets": [""]},
                "lost": {"provider": "dialpad", "secret_files": ["nowhere.txt"]},
                "none": {"secrets": ["x"]},
                "odd": {"provider": "dialpad", "secrets": ["x"], "regoin": "US", "region": "us"},
            },
        },
        RECEIVER__HOTS="x",
        ADMIN__HOST="127.0.0.1",
    )
    keys = (
        "reciever",
        "receiver.port",
        "receiver.prot",
        "receiver.hots",
        "admin.port",
        "eventlog.kind",
        "eventlog.journal_max_bytes",
        "logging.level",
        "connections.acme.provider",
        "connections.Bad-Name",
        "connections.bare",
        "connections.empty.secrets",
        "connections.lost.secret_files",
        "connections.none.provider",
        "connections.odd.regoin",
        "connections.odd.region",
    )
    for key in keys:
        assert any(fault.startswith(key) for fault in found), f"{key} is not in {found}"
    assert len(found) == len(keys)


@pytest.mark.parametrize(
    ("values", "key", "nearest"),
    [
        ({"reciever": {}}, "reciever", "receiver"),
        ({"receiver": {"prot": 1}}, "receiver.prot", "port"),
        ({"receiver": {"max_body_byte": 1}}, "receiver.max_body_byte", "max_body_bytes"),
        ({"connection": {}}, "connection", "connections"),
        ({"connections": {"acme": {**ACME, "regoin": "US"}}}, "connections.acme.regoin", "region"),
        ({"connections": {"acme": {**ACME, "secret": "x"}}}, "connections.acme.secret", "secrets"),
    ],
)
def test_a_misspelt_key_is_told_with_the_nearest_known_one(
    values: dict[str, Any], key: str, nearest: str
) -> None:
    found = next(fault for fault in faults(values) if fault.startswith(key))
    assert f"`{nearest}`" in found
    assert "test.toml" in found


def test_a_misspelt_provider_is_told_with_the_nearest_known_one() -> None:
    (found,) = faults({"connections": {"acme": {**ACME, "provider": "dialpda"}}})
    assert "dialpad" in found


def test_what_is_like_nothing_is_told_with_what_is_known() -> None:
    (found,) = faults({"receiver": {"qqqqqq": 1}})
    for key in ("host", "port", "max_body_bytes"):
        assert key in found


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("RECEIVER__PROT", "receiver.prot"),
        ("RECIEVER__PORT", "reciever"),
        ("LOGGING__LEVEL__DEEP", "logging.level"),
        ("CONNECTIONS__ACME__REGOIN", "connections.acme.regoin"),
        ("NOSUCH__THING", "nosuch"),
    ],
)
def test_an_unknown_variable_is_told_by_its_own_name(name: str, key: str) -> None:
    found = faults({"connections": {"acme": ACME}}, **{name: "1"})
    assert any(fault.startswith(key) and f"DIALSTREAM_{name}" in fault for fault in found), found


def test_a_wrong_value_is_told_by_where_it_came_from() -> None:
    found = faults({"receiver": {"port": "x"}, "admin": {"port": "x"}}, ADMIN__PORT="y")
    (ours,) = (fault for fault in found if fault.startswith("admin.port"))
    assert "DIALSTREAM_ADMIN__PORT" in ours
    (theirs,) = (fault for fault in found if fault.startswith("receiver.port"))
    assert "test.toml" in theirs


@pytest.mark.parametrize(
    "text",
    [
        "[receiver",
        "port = ",
        "a = 1\na = 2",
        "\0",
        "x = " + "9" * 5000,
        "x = " + "[" * 5000,
        "[receiver]\nport = 1979-13-45",
        'x = "\\ud800"',
    ],
    ids=lambda text: repr(text[:20]),
)
def test_what_is_no_toml_is_one_fault_with_the_file_in_it(text: str) -> None:
    (found,) = faults(text)
    assert "test.toml" in found


def test_a_file_in_another_encoding_is_one_fault() -> None:
    Path("test.toml").write_bytes("[receiver]\nhost = 'é'".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"test\.toml"):
        load_settings(Path("test.toml"), {})


def test_a_missing_file_is_a_fault_only_if_it_was_named() -> None:
    for environ, file in (({"DIALSTREAM_CONFIG": "no.toml"}, None), ({}, Path("no.toml"))):
        with pytest.raises(ConfigError, match=r"no\.toml"):
            load_settings(file, environ)
    assert load_settings(None, {}).connections.keys() == {"dev"}


@pytest.mark.parametrize("name", ["a", "acme", "acme_eu", "a1_b2_c3", "a" * 32])
def test_names_of_connections(name: str) -> None:
    assert load({"connections": {name: ACME}}).connections.keys() == {name}


@pytest.mark.parametrize(
    "name", ["", "A", "1a", "_a", "a_", "a__b", "a-b", "a.b", "a/b", "ä", "a" * 33, "a\n", " a"]
)
def test_what_is_no_name_of_a_connection(name: str) -> None:
    (found,) = faults({"connections": {name: ACME}})
    assert found.startswith(f"connections.{name}")


@pytest.mark.parametrize(
    "values",
    [
        {"receiver": 5},
        {"receiver": []},
        {"connections": 5},
        {"connections": []},
        {"connections": {"acme": 5}},
        {"connections": {"acme": {"provider": 5, "secrets": 5, "secret_files": 5}}},
        {"connections": {"acme": {"provider": "dialpad", "secrets": [5, {}]}}},
        {"connections": {"acme": {"provider": "dialpad", "secrets": "in no list"}}},
    ],
    ids=str,
)
def test_values_of_wrong_shapes_are_faults_and_no_crash(values: dict[str, Any]) -> None:
    assert faults(values)
    assert faults(values, RECEIVER__PORT="x")
    assert faults(values, CONNECTIONS__ACME__REGION="x")


# Connections that see the same calls


def test_a_pair_has_what_is_usual_where_nothing_else_is_said() -> None:
    found = load(
        {
            "connections": {"acme": ACME, "bots": ACME},
            "reconcile": {"pairs": [{"pushed": "acme", "recorded": "bots"}]},
        }
    )
    (pair,) = found.reconcile.pairs
    assert (pair.pushed, pair.recorded, pair.numbers) == ("acme", "bots", ())
    assert (pair.gate_s, pair.ambiguity_margin_s) == (300, 5)
    assert (pair.recorded_start, pair.recorded_duration) == ("start", "connected")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"recorded": "bot"}, "reconcile.pairs.0.recorded: there is no connection 'bot'; did you"),
        (
            {"pushed": "x"},
            "reconcile.pairs.0.pushed: there is no connection 'x'; known: acme",
        ),
        ({"recorded": "acme"}, "reconcile.pairs.0: pushed and recorded are the same"),
        ({"gate": 5}, "reconcile.pairs.0.gate is not known (test.toml): did you mean `gate_s`?"),
        ({"gate_s": -1}, "reconcile.pairs.0.gate_s"),
        ({"numbers": ["0400 000 000"]}, "reconcile.pairs.0.numbers.0"),
        ({"recorded_start": "middle"}, "reconcile.pairs.0.recorded_start"),
        ({"recorded_duration": "talk"}, "reconcile.pairs.0.recorded_duration"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_pair_is_told(more: dict[str, Any], told: str) -> None:
    pair = {"pushed": "acme", "recorded": "bots", **more}
    values = {"connections": {"acme": ACME, "bots": ACME}, "reconcile": {"pairs": [pair]}}
    (found,) = faults(values)
    assert found.startswith(told)


def test_a_pair_that_is_there_twice_is_told() -> None:
    pair = {"pushed": "acme", "recorded": "bots"}
    values = {"connections": {"acme": ACME, "bots": ACME}, "reconcile": {"pairs": [pair, pair]}}
    assert faults(values) == (
        "reconcile.pairs.1: this pair is there already: leave one of the two",
    )


# What a connection is asked for, and what asks the provider


def test_a_provider_without_websocket_is_told() -> None:
    (found,) = faults(
        {"connections": {"line": {**LINE, "secrets": [WHSEC], "stream": {"enabled": True}}}}
    )
    assert found.startswith("connections.line.stream.enabled: diallink has no websocket")


def test_all_secrets_that_a_provider_cannot_use_are_told_once_beside_other_faults() -> None:
    line = {**LINE, "secrets": ["hunter2!", WHSEC, "whsec_short"], "secret_files": ["lost"]}
    found = faults(
        {
            "receiver": {"port": -1},
            "connections": {
                "line": {**line, "secret_files": []},
                "lost": line,
                "bots": {**BOTS, "secrets": ["a-token-that-is-long-enough"]},
                "guess": {**BOTS, "secrets": ["short"], "assume": {"push": "token"}},
            },
        }
    )
    expected = (
        "receiver.port",
        "connections.line.secrets: number 1 ",
        "connections.line.secrets: number 3 ",
        "connections.lost.secret_files: lost ",
        "connections.bots.secrets: Dialgood is not known to push",
        "connections.guess.secrets: number 1 ",
    )
    assert len(found) == len(expected)
    for fault, start in zip(found, expected, strict=True):
        assert fault.startswith(start)
        assert not any(secret in fault for secret in ("hunter2", "short", WHSEC, "long-enough"))


def test_a_secret_that_is_missing_is_told_once_also_where_the_provider_looks_at_it() -> None:
    (found,) = faults({"connections": {"acme": {**ACME, "secrets": [""]}}})
    assert "empty" in found
    line = {**LINE, "secrets": [""], "assume": {"pages": 1}}
    unknown, empty = faults({"connections": {"line": line}})
    assert "assume.pages" in unknown
    assert "secrets[0] is empty" in empty


def test_secrets_as_the_provider_shows_them_are_fine() -> None:
    Path("second").write_text(WHSEC + "\n")
    token = {**BOTS, "secrets": ["a-token-that-is-long-enough"], "assume": {"push": "token"}}
    pushed = {**LINE, "secrets": [WHSEC], "secret_files": ["second"]}
    assert load({"connections": {"line": pushed, "bots": token}}).connections["line"].has_secrets


@pytest.mark.parametrize("provider", ["diallink", "dialgood"])
def test_what_is_read_back_needs_a_key_first_of_all(provider: str) -> None:
    (found,) = faults({"connections": {"line": {"provider": provider}}})
    assert found.startswith("connections.line.api_key: there is none")


def test_notifications_alone_need_no_key() -> None:
    found = load({"connections": {"line": {"provider": "diallink", "secrets": [WHSEC]}}})
    assert not found.connections["line"].polled


def test_each_provider_is_read_in_its_own_way_where_nothing_else_is_said() -> None:
    found = load({"connections": {"acme": ACME, "line": LINE, "bots": BOTS}}).connections
    polls = {
        name: (at.poll.every_s, at.poll.overlap_s, at.poll.requests_per_s, at.poll.also)
        for name, at in found.items()
    }
    assert polls == {
        "acme": (300, 7200, 5.0, ()),
        "line": (300, 600, 1.0, ("contacts", "directory", "recordings")),
        "bots": (300, 7200, 1.0, ("directory", "versions")),
    }


def test_what_is_said_beats_the_providers_own_way_and_only_that() -> None:
    poll = (
        load(
            {"connections": {"line": {**LINE, "poll": {"every_s": 60, "also": []}}}},
            CONNECTIONS__LINE__POLL__REQUESTS_PER_S="2",
        )
        .connections["line"]
        .poll
    )
    assert (poll.every_s, poll.overlap_s, poll.requests_per_s, poll.also) == (60, 600, 2.0, ())


# What a provider leaves open


def assuming(table: dict[str, Any], assume: object, **environ: str) -> tuple[str, ...]:
    return faults({"connections": {"line": {**table, "assume": assume}}}, **environ)


@pytest.mark.parametrize(
    ("table", "assume", "key", "told"),
    [
        (LINE, {"page_sise": 5}, "page_sise", "did you mean `page_size`?"),
        (LINE, {"call_fields": {"startd_at": "x"}}, "call_fields.startd_at", "`started_at`?"),
        (LINE, {"page_limit": 5, "rest": 1}, "page_limit", "did you mean `page_size`?"),
        (LINE, {"page_size": "many"}, "page_size", "valid integer"),
        (LINE, {"page_size": 1001}, "page_size", "1000"),
        (LINE, {"page_size_fallback": 101}, "page_size_fallback", "101 is above page_size (100)"),
        (LINE, {"page_size": 10, "page_size_fallback": 11}, "page_size_fallback", "page_size (10)"),
        (LINE, {"rest_s": 61, "rest_most_s": 60}, "rest_most_s", "60.0 is below rest_s (61.0)"),
        (LINE, {"rest_most_s": 59}, "rest_most_s", "59.0 is below rest_s (60.0)"),
        (LINE, {"rest_s": 0}, "rest_s", "greater than 0"),
        (LINE, {"order": "newest"}, "order", "'auto', 'updated' or 'started'"),
        (LINE, {"error_fields": "message"}, "error_fields", "valid tuple"),
        (LINE, {"call_fields": "id"}, "call_fields", "dictionary"),
        (LINE, {"call_fields": {"id": ""}}, "call_fields.id", "at least 1"),
        (LINE, {"token_header": "x y"}, "token_header", "pattern"),
        (BOTS, {"page_size": 5}, "page_size", "did you mean `page_limit`?"),
        (BOTS, {"page_limit_fallback": 101}, "page_limit_fallback", "above page_limit (100)"),
        (BOTS, {"hide_web_calls": "perhaps"}, "hide_web_calls", "boolean"),
        (BOTS, {"outcomes": {"machine": "robot"}}, "outcomes.machine", "'answered'"),
        (BOTS, {"running": 5}, "running", "tuple"),
        (BOTS, {"push": "yes"}, "push", "'off' or 'token'"),
        (ACME, {"page_size": 5}, "page_size", "known: none"),
        (LINE, 5, "", "dictionary"),
    ],
    ids=str,
)
def test_what_is_assumed_wrongly_is_told_with_its_key(
    table: dict[str, Any], assume: object, key: str, told: str
) -> None:
    found = assuming(table, assume)[0]
    where = ".".join(filter(None, ("connections.line.assume", key)))
    assert re.match(rf"{re.escape(where)} (is not known )?\(test.toml\): ", found)
    assert told in found


def test_everything_that_is_assumed_wrongly_is_told_at_once() -> None:
    wrong = {"page_size": 0, "rest_s": "x", "call_fields": {"id": 5, "form": "x"}, "pages": 1}
    keys = [
        fault.split(" ")[0].removeprefix("connections.line.assume.")
        for fault in assuming(LINE, wrong)
    ]
    assert sorted(keys) == ["call_fields.form", "call_fields.id", "page_size", "pages", "rest_s"]


def test_what_is_assumed_comes_from_variables_too() -> None:
    found = load(
        {"connections": {"line": {**LINE, "assume": {"page_size": 50}}, "bots": BOTS}},
        CONNECTIONS__LINE__ASSUME__PAGE_SIZE="20",
        CONNECTIONS__LINE__ASSUME__CALL_FIELDS__FROM_NUMBER="caller",
        CONNECTIONS__LINE__ASSUME__ERROR_FIELDS='["reason"]',
        CONNECTIONS__BOTS__ASSUME__OUTCOMES='{"machine": "voicemail"}',
        CONNECTIONS__BOTS__ASSUME__HIDE_WEB_CALLS="true",
    ).connections
    line, bots = OfDialLink.of(found["line"]), OfDialgood.of(found["bots"])
    assert (line.page_size, line.call_fields.from_number) == (20, "caller")
    assert line.call_fields.to_number == "to"
    assert line.error_fields == ("reason",)
    assert (bots.outcomes, bots.hide_web_calls) == ({"machine": "voicemail"}, True)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("PAGE_SISE", "5", "did you mean `page_size`?"),
        ("PAGE_SIZE", "many", "valid integer"),
        ("CALL_FIELDS__ID__X", "y", "valid string"),
        ("CALL_FIELDS", "[", "dictionary"),
    ],
)
def test_a_variable_that_assumes_wrongly_is_told_by_its_name(
    name: str, value: str, told: str
) -> None:
    variable = f"CONNECTIONS__LINE__ASSUME__{name}"
    (found,) = faults({"connections": {"line": LINE}}, **{variable: value})
    assert f"(DIALSTREAM_{variable})" in found
    assert told in found


def test_smaller_pages_and_longer_rests_need_no_second_setting() -> None:
    found = load(
        {
            "connections": {
                "line": {**LINE, "assume": {"page_size": 5, "rest_s": 1000}},
                "bots": {**BOTS, "assume": {"page_limit": 4}},
            }
        }
    ).connections
    line = OfDialLink.of(found["line"])
    assert (line.page_size_fallback, line.rest_most_s) == (5, 1000.0)
    assert OfDialgood.of(found["bots"]).page_limit_fallback == 4


def test_a_connection_that_is_only_polled_needs_no_secret() -> None:
    found = load({"connections": {"acme": {"provider": "dialpad", "api_key": "key"}}})
    assert not found.connections["acme"].has_secrets
    assert found.connections["acme"].polled


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"stream": {"enabled": True}}, "api_key: there is none"),
        ({"poll": {"enabled": True}}, "api_key: there is none"),
        ({"api_key": ""}, "api_key: that is no key"),
        ({"api_key": "two\nlines"}, "api_key: that is no key"),
        ({"api_key": "nö"}, "api_key: that is no key"),
        ({"api_key_file": "nowhere"}, "api_key_file: nowhere cannot be read"),
        ({"base_url": "dialpad.com"}, "base_url"),
        ({"base_url": "https://dialpad.com/"}, "base_url"),
        ({"base_url": "https://user:word@dialpad.com"}, "base_url"),
        ({"public_url": "https://hooks.example.com/"}, "public_url"),
        ({"public_url": "https://hooks.example.com/?a=b"}, "public_url"),
        ({"stream": {"refresh_s": 3600}}, "stream.refresh_s"),
        ({"poll": {"requests_per_s": 21}}, "poll.requests_per_s"),
        ({"poll": {"also": ["everything"]}}, "poll.also"),
        ({"poll": {"evry_s": 1}}, "did you mean `every_s`?"),
        ({"stream": {"enable": True}}, "did you mean `enabled`?"),
        ({"subscriptions": {"kinds": ["calls"]}}, "subscriptions.kinds"),
    ],
    ids=str,
)
def test_what_is_wrong_with_reading_back_is_told(more: dict[str, Any], told: str) -> None:
    (found,) = faults({"connections": {"stream": {**ACME, **more}}})
    assert told in found


def test_a_connection_pushed_by_websocket_alone_needs_its_secret() -> None:
    table = {"provider": "dialpad", "api_key": "key", "stream": {"enabled": True}}
    (found,) = faults({"connections": {"acme": table}})
    assert "there is no secret" in found


def test_without_the_setting_a_connection_is_polled_where_there_is_a_key() -> None:
    assert not load({"connections": {"acme": ACME}}).connections["acme"].polled
    with_key = {**ACME, "api_key": "key"}
    assert load({"connections": {"acme": with_key}}).connections["acme"].polled
    off = {**with_key, "poll": {"enabled": False}}
    assert not load({"connections": {"acme": off}}).connections["acme"].polled


def test_the_key_is_read_anew_each_time() -> None:
    Path("key").write_text("old\n")
    acme = load({"connections": {"acme": {**ACME, "api_key_file": "key"}}}).connections["acme"]
    assert acme.key() == "old"
    Path("key").write_text("new")
    assert acme.key() == "new"


# The environment


def test_the_environment_beats_the_file() -> None:
    found = load(
        {"receiver": {"port": 1, "host": "file"}, "connections": {"acme": ACME}},
        RECEIVER__PORT="2",
        EVENTLOG__PATH="elsewhere",
        RECEIVER__BODY_TIMEOUT_S="1.5",
        CONNECTIONS__ACME__REGION="GB",
        CONNECTIONS__ACME__SECRETS='["one", "two"]',
        CONNECTIONS__LINE_TWO__PROVIDER="dialpad",
        CONNECTIONS__LINE_TWO__SECRETS='["three"]',
    )
    assert found.receiver.port == 2
    assert found.receiver.host == "file"
    assert found.eventlog.path == Path("elsewhere")
    assert found.receiver.body_timeout_s == 1.5
    assert found.connections["acme"].region == "GB"
    assert found.connections["acme"].signing_secrets() == (b"one", b"two")
    assert found.connections["line_two"].signing_secrets() == (b"three",)


def test_a_right_variable_mends_a_wrong_file() -> None:
    assert load({"receiver": {"port": "x"}}, RECEIVER__PORT="7").receiver.port == 7


def test_a_secret_that_looks_like_json_is_itself() -> None:
    for secret in ('{"a": 1}', "[1]", '"quoted"', "[", "true", "12345"):
        variable = json.dumps([secret])
        found = load(
            {"connections": {"acme": {"provider": "dialpad"}}}, CONNECTIONS__ACME__SECRETS=variable
        )
        assert found.connections["acme"].signing_secrets() == (secret.encode(),)


def test_variables_of_others_are_nobodys_business() -> None:
    found = load("", CONFIG="x", LOG="y", DEBUG="1")
    assert found == load("")
    assert load_settings(Path("test.toml"), {"PATH": "x", "MY__SETTING": "y"}) == found


def test_the_config_variable_names_the_file_and_the_option_beats_it() -> None:
    Path("one.toml").write_text("[receiver]\nport = 1\n")
    Path("two.toml").write_text("[receiver]\nport = 2\n")
    Path("dialstream.toml").write_text("[receiver]\nport = 3\n")
    named = {"DIALSTREAM_CONFIG": "one.toml"}
    assert load_settings(None, named).receiver.port == 1
    assert load_settings(Path("two.toml"), named).receiver.port == 2
    assert load_settings(None, {}).receiver.port == 3


# Secrets


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b"s3cret", b"s3cret"),
        (b"s3cret\n", b"s3cret"),
        (b"s3cret\r\n", b"s3cret"),
        (b"s3cret\n\n", b"s3cret\n"),
        (b" s3cret ", b" s3cret "),
        (b"\ns3cret", b"\ns3cret"),
        (b"s3cret\r", b"s3cret\r"),
        ("geheimnïs\n".encode(), "geheimnïs".encode()),
        (b"\xff\xfe\n", b"\xff\xfe"),
    ],
)
def test_one_final_line_break_is_no_part_of_a_secret(content: bytes, secret: bytes) -> None:
    Path("secret.txt").write_bytes(content)
    assert read_secret(Path("secret.txt")) == secret
    connections = {"acme": {"provider": "dialpad", "secret_files": ["secret.txt"]}}
    assert load({"connections": connections}).connections["acme"].signing_secrets() == (secret,)


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n"])
def test_an_empty_secret_stops_the_start(content: bytes) -> None:
    Path("secret.txt").write_bytes(content)
    for secrets in ({"secret_files": ["secret.txt"]}, {"secrets": [""]}, {"secrets": ["good", ""]}):
        (found,) = faults({"connections": {"acme": {"provider": "dialpad", **secrets}}})
        assert "empty" in found


def test_secrets_and_files_of_secrets_go_together() -> None:
    Path("new.txt").write_text("new\n")
    table = {"provider": "dialpad", "secrets": ["old"], "secret_files": ["new.txt"]}
    found = load({"connections": {"acme": table}})
    assert set(found.connections["acme"].signing_secrets()) == {b"old", b"new"}


_SECRETS = st.text(st.characters(exclude_categories=["Cs"]), min_size=8, max_size=60).filter(
    lambda text: len(set(text)) > 4
)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(secret=_SECRETS, place=st.integers(0, 9))
def test_no_fault_and_no_dump_quotes_a_secret(secret: str, place: int) -> None:
    good = {**ACME, "secrets": [secret]}
    values: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({"connections": {"acme": {**good, "regoin": 1}}}, {}),
        ({"connections": {"acme": {**good, "secrets": secret}}}, {}),
        ({"connections": {"acme": {**good, "secrets": [[secret]]}}}, {}),
        ({"connections": {"acme": {**good, "secrets": [{"x": secret}]}}}, {}),
        ({"connections": {"acme": {**good, "secrets": [secret, ""]}}}, {}),
        ({"connections": {"acme": good}, "receiver": {"port": "x"}}, {}),
        ({"connections": {"acme": ACME}}, {"CONNECTIONS__ACME__SECRETS": secret}),
        ({"connections": {"acme": ACME}}, {"CONNECTIONS__ACME__SECRETS": f"[{secret}"}),
        ({"connections": {"acme": ACME}}, {"CONNECTIONS__ACME__SECRTS": json.dumps([secret])}),
        ({"connections": {"acme": {"provider": "nobody", "secrets": [secret]}}}, {}),
    ]
    table, environ = values[place]
    assume(all("\0" not in text for text in environ.values()))
    # What the messages say anyway proves nothing.
    assume(secret not in "".join(_usual_words(table, environ)))
    try:
        found = load(table, **environ)
        said = [repr(found), found.model_dump_json()]  # it happens to be a JSON list of texts
    except ConfigError as error:
        said = [str(error), *error.faults]
    assert all(secret not in text for text in said)


def _usual_words(table: dict[str, Any], environ: dict[str, str]) -> list[str]:
    plain = json.loads(json.dumps(table))
    plain["connections"]["acme"]["secrets"] = [[]]
    try:
        load(plain, **dict.fromkeys(environ, "-"))
    except ConfigError as error:
        return list(error.faults)
    return []


def test_a_secret_in_broken_toml_is_not_quoted() -> None:
    for text in (
        f'[connections.acme]\nsecrets = ["{SECRET}"\nprovider = "dialpad"\n',
        f"[connections.acme]\nsecrets = [{SECRET}]\n",
        f'[connections.acme]\nsecrets = ["{SECRET}]\n',
        f"[connections.acme]\nsecrets = '{SECRET}\n",
        f'[connections.acme]\nsecrets = ["{SECRET}\\q"]\n',
    ):
        (found,) = faults(text)
        assert SECRET not in found
        assert SECRET[:12] not in found


# Without a file


def test_without_anything_there_is_a_connection_with_a_secret_of_its_own() -> None:
    found = load_settings(None, {})
    dev = found.connections["dev"]
    assert dev.provider == "dialpad"
    file = Path("data/dev.secret")
    assert not file.parent.exists()  # who only reads the log needs none
    (secret,) = dev.signing_secrets()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(secret) >= 32
    assert file.read_bytes() == secret + b"\n"
    # and it stays
    assert load_settings(None, {}).connections["dev"].signing_secrets() == (secret,)


def test_two_folders_have_two_secrets() -> None:
    found = [
        load_settings(None, {"DIALSTREAM_EVENTLOG__PATH": name})
        .connections["dev"]
        .signing_secrets()
        for name in ("one", "two")
    ]
    assert found[0] != found[1]


def test_whoever_configures_connections_gets_no_other() -> None:
    environ = {
        "DIALSTREAM_CONNECTIONS__ACME__PROVIDER": "dialpad",
        "DIALSTREAM_CONNECTIONS__ACME__SECRETS": '["x"]',
    }
    assert load_settings(None, environ).connections.keys() == {"acme"}
    assert not Path("data").exists()


# Kafka


KAFKA: dict[str, Any] = {"eventlog": {"kind": "kafka"}}


def kafka(**values: Any) -> dict[str, Any]:
    return {**KAFKA, "kafka": values, "connections": {"acme": ACME}}


def test_all_faults_of_kafka_are_told_at_once_each_with_its_key() -> None:
    found = faults(
        kafka(
            bootstrap_servers="one:9092, two, :9092,three:port",
            replication_factor=1,
            security_protocol="SASL_SSL",
            sasl_password_file="nowhere.txt",
            ssl_cafile="nowhere.pem",
        )
        | {"admin": {"port": -1}}
    )
    assert [fault.partition(": ")[0] for fault in found] == [
        "admin.port (test.toml)",
        *["kafka.bootstrap_servers"] * 3,
        "kafka.min_insync_replicas",
        "kafka.sasl_username",
        "kafka.sasl_password_file",
        "kafka.ssl_cafile",
    ]
    for server in ("'two'", "':9092'", "'three:port'"):
        assert sum(server in fault for fault in found) == 1


def test_kafka_leaves_time_to_spool_before_the_answer_is_due() -> None:
    tight = kafka(publish_timeout_s=2.0) | {"receiver": {"answer_within_s": 2.0}}
    (fault,) = faults(tight)
    assert fault.startswith("kafka.publish_timeout_s")
    assert "receiver.answer_within_s" in fault
    assert load({**tight, "eventlog": {"kind": "journal"}})
    assert load(kafka()), "as it is without being asked"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("topic_prefix", "with space."),
        ("topic_prefix", "x" * 201),
        ("partitions", 0),
        ("replication_factor", 0),
        ("min_insync_replicas", 0),
        ("publish_timeout_s", 0),
        ("publish_timeout_s", 3.1),
        ("security_protocol", "TLS"),
        ("sasl_mechanism", "GSSAPI"),
        ("bootstrap_servers", ""),
        ("bootstrap_servers", "one:9092,"),
        ("bootstrap_server", "one:9092"),
    ],
)
def test_a_value_that_cannot_be_is_told_with_its_key(key: str, value: object) -> None:
    (fault,) = faults(kafka(**{key: value}))
    assert fault.startswith(f"kafka.{key}")


def test_the_password_of_kafka_comes_from_a_file_or_from_the_settings() -> None:
    table = {"security_protocol": "SASL_PLAINTEXT", "sasl_username": "us"}
    (fault,) = faults(kafka(**table))
    assert fault.startswith("kafka.sasl_password")
    Path("password").write_bytes("invented pässword\r\n".encode())
    assert load(kafka(**table, sasl_password_file="password")).kafka.password() == (
        "invented pässword"
    )
    assert load(kafka(**table), KAFKA__SASL_PASSWORD="{in the environment").kafka.password() == (
        "{in the environment"
    )
    Path("password").write_bytes(b"\xff")
    (fault,) = faults(kafka(**table, sasl_password_file="password"))
    assert fault == "kafka.sasl_password_file: password is not in UTF-8"


@pytest.mark.parametrize("key", ["ssl_cafile", "ssl_certfile"])
def test_certificates_that_are_missing_or_none_are_told(key: str) -> None:
    table = {"security_protocol": "SSL", key: "here.pem"}
    (fault,) = faults(kafka(**table))
    assert fault == f"kafka.{key}: here.pem cannot be read (No such file or directory)"
    Path("here.pem").write_text("no certificate")
    (fault,) = faults(kafka(**table))
    assert fault == f"kafka.{key}: here.pem cannot be read (is no PEM file that fits)"


def test_certificates_are_those_of_the_files(tmp_path: Path) -> None:
    made = make_certificates(tmp_path)
    table = {"security_protocol": "SSL", "ssl_cafile": str(made.authority)}
    trusted = load(kafka(**table)).kafka.ssl_context().get_ca_certs()
    assert len(trusted) == 1
    # The broker's own file has its key and its certificate.
    ours = {**table, "ssl_certfile": str(made.broker)}
    assert load(kafka(**ours)).kafka.ssl_context()
    (fault,) = faults(kafka(**table, ssl_certfile=str(made.authority)))
    assert fault.startswith("kafka.ssl_certfile")


def test_what_kafka_would_need_is_no_fault_where_the_log_is_the_journal() -> None:
    table = kafka(security_protocol="SASL_SSL", ssl_cafile="nowhere.pem")
    assert load({**table, "eventlog": {"kind": "journal"}}).kafka.with_sasl


def test_no_fault_and_no_dump_quotes_the_password_of_kafka() -> None:
    secret = "invented-password-of-kafka"
    Path("password").write_bytes(secret.encode() + b"\xff")
    wrong = (
        kafka(sasl_password=[secret]),
        kafka(sasl_password=secret, security_protocol="SASL_SSL", ssl_cafile="nowhere.pem"),
        kafka(sasl_password_file="password", security_protocol="SASL_PLAINTEXT"),
        kafka(sasl_pasword=secret),
    )
    for table in wrong:
        assert secret not in "\n".join(faults(table))
    settings = load(kafka(sasl_password=secret))
    assert settings.kafka.password() == secret
    for text in (repr(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert secret not in text


# Examples


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 2


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_each_example_can_be_loaded(path: Path) -> None:
    values = tomllib.loads(path.read_text())
    for table in values.get("connections", {}).values():
        for name in (*table.get("secret_files", []), *filter(None, [table.get("api_key_file")])):
            if not Path(name).is_absolute():
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                Path(name).write_text(SECRET)
    assert load_settings(path, {}).connections


def test_one_example_has_every_setting_that_there_is() -> None:
    """Commented or not: whoever looks for a setting finds it there."""
    text = "\n".join(path.read_text() for path in EXAMPLES)
    lines = [line.lstrip("# ") for line in text.splitlines()]
    models: list[type[BaseModel]] = [Settings, Connection]
    for model in models:
        for key, field in model.model_fields.items():
            kind = field.annotation
            if get_origin(kind) is tuple:
                kind = get_args(kind)[0]
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                models.append(kind)
            elif key not in ("connections", "assume"):  # providers have examples of their own
                assert any(line.startswith(f"{key} =") for line in lines), key


def keys_of(values: object, above: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    if not isinstance(values, dict):
        return {above}
    inner = {key for name, value in values.items() for key in keys_of(value, (*above, name))}
    return inner | ({above} if above else set())


@pytest.mark.parametrize(
    ("provider", "numbers"),
    [
        ("diallink", {f"A-DL-{number}" for number in range(1, 8)}),
        ("dialgood", {f"A-DG-{number}" for number in range(1, 9)}),
        ("dialedin", {f"A-DI-{number}" for number in range(1, 8)}),
    ],
)
def test_each_provider_has_an_example_of_all_that_is_assumed_with_its_default(
    provider: str, numbers: set[str]
) -> None:
    text = (PROJECT / "deploy" / "examples" / f"{provider}.toml").read_text()
    [connection] = tomllib.loads(text)["connections"].values()
    model = PROVIDERS[provider].assumptions
    assert model is not None
    assert model.model_validate(connection["assume"]) == model()
    assert keys_of(connection["assume"]) == keys_of(model().model_dump(mode="json"))
    assert (
        connection.get("poll", {}).items()
        <= Connection(provider=provider).poll.model_dump(mode="json").items()
    )
    assert set(re.findall(r"A-D[LGI]-\d+", text)) == numbers


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_each_example_says_what_it_is_for(path: Path) -> None:
    assert path.read_text().startswith("#")


# As people see it


def test_bad_settings_end_every_command_with_2_and_a_line_for_each_fault(tmp_path: Path) -> None:
    secret = "".join(reversed(SECRET))
    table = {
        "receiver": {"prot": 1},
        "admin": {"port": -1},
        "connections": {"acme": {"provider": "dialpad", "secrets": secret}},
    }
    Path("dialstream.toml").write_text(tomli_w.dumps(table))
    for arguments in (("up",), ("config", "show"), ("send", "x.json")):
        ran = run(*arguments, cwd=tmp_path)
        assert ran.code == 2, arguments
        assert ran.stdout == ""
        for key in ("receiver.prot", "admin.port", "connections.acme.secrets"):
            assert sum(key in line for line in ran.stderr.splitlines()) == 1
        assert_no_traceback(ran.stderr)
        assert secret not in ran.output


def test_config_show_masks_every_secret_and_prints_what_config_reads(tmp_path: Path) -> None:
    Path("s.txt").write_text(OTHER_SECRET)
    acme = {**ACME, "secrets": [SECRET, "second " + SECRET], "secret_files": ["s.txt"]}
    password = "invented-password-of-kafka"
    table = {
        "receiver": {"port": 1234},
        "kafka": {"sasl_username": "us", "sasl_password": password},
        "connections": {"acme": acme},
    }
    Path("dialstream.toml").write_text(tomli_w.dumps(table))
    shown = run("config", "show", cwd=tmp_path, environment={"DIALSTREAM_ADMIN__PORT": "4321"})
    as_json = run("config", "show", "--json", cwd=tmp_path)
    for ran in (shown, as_json):
        assert ran.code == 0
        assert SECRET not in ran.output
        assert OTHER_SECRET not in ran.output
        assert password not in ran.output
    values = tomllib.loads(shown.stdout)
    assert values["receiver"]["port"] == 1234
    assert values["admin"]["port"] == 4321
    assert values["kafka"]["sasl_username"] == "us"
    assert values["kafka"]["sasl_password"]
    assert len(values["connections"]["acme"]["secrets"]) == 2
    assert values["connections"]["acme"]["secret_files"] == ["s.txt"]
    assert json.loads(as_json.stdout)["receiver"]["port"] == 1234
    assert load(values).receiver.port == 1234


def test_config_show_prints_what_is_assumed_and_it_can_be_read_again(tmp_path: Path) -> None:
    Path("secret").write_text(WHSEC)
    line = {**LINE, "secret_files": ["secret"], "assume": {"call_fields": {"id": "callId"}}}
    bots = {**BOTS, "assume": {"page_limit": 5, "outcomes": {"machine": "voicemail"}}}
    table = {"connections": {"acme": ACME, "line": line, "bots": bots}}
    Path("dialstream.toml").write_text(tomli_w.dumps(table))
    shown = run("config", "show", cwd=tmp_path)
    assert shown.code == 0, shown.output
    assert WHSEC not in shown.output
    values = tomllib.loads(shown.stdout)
    assumed = values["connections"]["line"]["assume"]
    assert assumed["call_fields"]["id"] == "callId"
    assert assumed["call_fields"]["started_at"] == "startedAt"
    assert assumed["page_size"] == 100
    assert values["connections"]["line"]["poll"]["overlap_s"] == 600
    assert values["connections"]["bots"]["assume"] == {
        "time_unit": "auto",
        "page_limit": 5,
        "page_limit_fallback": 5,
        "created_at": "start",
        "outcomes": {"machine": "voicemail"},
        "running": ["in-progress", "in progress", "ringing", "queued", "initiated"],
        "hide_web_calls": False,
        "push": "off",
    }
    assert (
        "assume" not in values["connections"]["acme"] or not values["connections"]["acme"]["assume"]
    )
    again = load(shown.stdout)
    assert in_force(again) == values


# While it runs


def test_a_hangup_reads_files_of_secrets_again_and_keeps_the_old_ones_if_they_are_wrong(
    make_product: MakeProduct, tmp_path: Path
) -> None:
    old, new = SECRET, OTHER_SECRET
    file = tmp_path / "secret.txt"
    file.write_text(old)
    table = {"acme": {"provider": "dialpad", "secret_files": [str(file)]}}
    product = make_product(settings={"connections": table}).start()

    def accepted(secret: str) -> bool:
        return product.post(sign(call(new_leg(), 0), secret)).status == 204

    assert (accepted(old), accepted(new)) == (True, False)

    file.write_text(new + "\n")
    assert (accepted(old), accepted(new)) == (True, False), "files are read when asked to"
    with product.wire() as kept:  # its connection outlives the change
        assert kept.ask(request("/webhooks/acme", sign(call(new_leg(), 0), old))).status == 204
        product.signal(SIGHUP)
        product.wait_for_log("secrets_reloaded", 1)
        assert kept.ask(request("/webhooks/acme", sign(call(new_leg(), 0), old))).status == 401
        assert kept.ask(request("/webhooks/acme", sign(call(new_leg(), 0), new))).status == 204

    for number, broken in enumerate((b"", b"\n", None, "a folder"), 1):
        file.unlink()
        if isinstance(broken, bytes):
            file.write_bytes(broken)
        elif broken:
            file.mkdir()
        product.signal(SIGHUP)
        lines = product.wait_for_log("secrets_not_reloaded", number)
        assert "acme" in json.dumps(lines[-1]["faults"]), "which connection is it?"
        assert (accepted(old), accepted(new)) == (False, True)
        if file.is_dir():
            file.rmdir()
        file.touch()

    file.write_text(old)
    product.signal(SIGHUP)
    product.wait_for_log("secrets_reloaded", 2)
    assert (accepted(old), accepted(new)) == (True, False)
    assert not product.log("unexpected_error")


def test_many_hangups_under_way_lose_nothing(make_product: MakeProduct) -> None:
    product = make_product().start()
    leg = new_leg()
    for seq in range(40):
        os.kill(product.running.pid, SIGHUP)
        assert product.post(sign(call(leg, seq))).status == 204
    found = product.settled().outcomes()
    assert found["received"] == found["stored"] == 40, "counters outlive a reload"
