"""DialedIn as people meet it: `simulate dialedin`, and what `doctor` says of a connection to it."""

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import stamina

from ingest.commands.doctor_providers import judge_sink
from ingest.settings import Settings
from ingest.simulator.dialedin_server import SimulatedDialedIn, simulated_dialedin
from tests.conftest import MakeProduct
from tests.ingest.commands.on_kafka import run_here
from tests.ingest.commands.running import running
from tests.kit import SCRIPT, clean_environment, run


@pytest.fixture(autouse=True)
def _quickly() -> Iterator[None]:
    with stamina.set_testing(testing=True, attempts=1):
        yield


@pytest.fixture
def dialedin() -> Iterator[SimulatedDialedIn]:
    with running(simulated_dialedin()) as server:
        yield server


def told(make_product: MakeProduct, **connection: Any) -> list[tuple[str, str]]:
    table = {"provider": "dialedin", "account_id": "example", "region": "US", **connection}
    product = make_product(settings={"connections": {"floor": table}})
    ran = run_here(product, "doctor", "--json")
    return [
        (finding["state"], finding["what"])
        for finding in json.loads(ran.stdout)
        if finding["what"].startswith("floor: ")
    ]


def test_doctor_asks_whether_the_token_is_good(
    dialedin: SimulatedDialedIn, make_product: MakeProduct
) -> None:
    base = {"base_url": dialedin.base_url, "api_key": dialedin.token}
    good = told(make_product, **base)
    assert ("good", "floor: DialedIn takes the key") in good
    assert any("is told nothing" in what for _, what in good)
    for wrong in ({"api_key": "another"}, {"account_id": "another"}):
        refused = told(make_product, **(base | wrong))
        [bad] = [what for state, what in refused if state == "bad"]
        assert "refused" in bad
        assert "another" not in bad
    assert dialedin.floor.leads == []
    assert dialedin.scandals == 0


MISSED = {"lead_on_missed": True, "lead_campaign": "x"}
PUSHED_AND_READ = {"secrets": ["f" * 32], "api_key": "k", "poll": {"also": ["consents"]}}


def judged(sink: dict[str, Any], dialpad: dict[str, Any]) -> list[tuple[str, str]]:
    connections = {
        "acme": {"provider": "dialpad", **dialpad},
        "floor": {"provider": "dialedin", "sink": sink},
    }
    settings = Settings.model_validate({"connections": connections})
    return [(finding.state, finding.what) for finding in judge_sink("floor", settings)]


@pytest.mark.parametrize(
    ("sink", "dialpad", "state", "what"),
    [
        ({}, {}, "good", "every rule of the sink is off"),
        (MISSED, PUSHED_AND_READ, "good", "rings nobody"),
        ({**MISSED, "lead_dial": True}, PUSHED_AND_READ, "odd", "called back at once"),
        (MISSED, {"secrets": ["f" * 32]}, "odd", "no ledger says who was missed"),
        ({"dnc_on_consent": True}, PUSHED_AND_READ, "good", "rings nobody"),
        ({"dnc_on_consent": True}, {"api_key": "k"}, "odd", "of consents nobody hears"),
        ({"dnc_on_stop": True}, {}, "good", "rings nobody"),
        (
            {"dnc_on_stop": True},
            {"privacy": {"drop": ["content", "raw"]}},
            "odd",
            "no STOP is seen",
        ),
    ],
)
def test_what_dialedin_is_told_and_which_rules_cannot_act(
    sink: dict[str, Any], dialpad: dict[str, Any], state: str, what: str
) -> None:
    found = judged(sink, dialpad)
    assert [each for each, said in found if what in said] == [state]
    assert {each for each, _said in found} <= {"good", state}


def test_a_simulated_one_shows_settings_that_dialstream_reads(tmp_path: Path) -> None:
    with subprocess.Popen(
        [SCRIPT, "simulate", "dialedin", "--port", "0"],
        cwd=tmp_path,
        env=clean_environment(PYTHONUNBUFFERED="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            shown = ""
            for line in process.stdout:
                shown += line
                if "Ctrl-C" in line:
                    break
            _, _, rest = shown.partition("In dialstream.toml")
            lines = rest.partition("\nThen ")[0].splitlines()[1:]
            (tmp_path / "dialstream.toml").write_text("\n".join(map(str.strip, lines)))
            ran = run("config", "show", "--json", cwd=tmp_path)
            assert ran.code == 0, ran.stderr
            [connection] = json.loads(ran.stdout)["connections"].values()
            assert connection["provider"] == "dialedin"
            assert connection["timezone"] == "America/New_York"
            assert not connection["sink"]["lead_dial"]
            [form] = re.findall(r"curl (.*) (http://\S+)", shown)
            fields = [part.split("=", 1) for part in re.findall(r"-d (\S+)", form[0])]
            found = httpx.post(form[1], data=dict(fields), trust_env=False)
            assert found.json() == {"id": None, "LeadExists": False}
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=60)
            assert (process.returncode, errors) == (0, "")
            assert re.search(r"requests +1 200", rest)
            assert re.search(r"commands +1 SearchLead", rest)
        finally:
            process.kill()


def test_what_its_sink_cannot_handle_has_topics_made_with_the_others(
    make_product: MakeProduct,
) -> None:
    floor = {
        "provider": "dialedin",
        "api_key": "token",
        "account_id": "example",
        "sink": {"dnc_on_stop": True, "dnc_on_consent": True, "update_on_contact": True},
    }
    product = make_product(settings={"connections": {"floor": floor}})
    ran = product.run("topics", "create", "--group", "sink-floor-dnc")
    assert (ran.code, ran.stderr) == (0, "")
    lines = [line for line in ran.stdout.splitlines() if "rejects.sink" in line]
    assert [line.split()[:2] for line in lines] == [
        ["made", "rejects.sink-floor-dnc"],
        ["made", "rejects.sink-floor-updates"],
    ]
