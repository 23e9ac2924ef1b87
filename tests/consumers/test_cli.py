"""The commands as people and scripts meet them: what they print, and how they end."""

import contextlib
import io
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from consumers.cli import app
from ingest.commands.doctor import diagnose, show
from tests.conftest import MakeProduct
from tests.kit import (
    OTHER_SECRET,
    PROJECT,
    SAMPLES,
    SCRIPT,
    SECRET,
    Product,
    Ran,
    assert_no_traceback,
    call,
    clean_environment,
    new_leg,
    run,
    samples,
    sign,
)

#: Loaded by whoever needs them, never to say how a command is called.
HEAVY = {
    "aiokafka",
    "apsw",
    "asyncio",
    "httptools",
    "httpx",
    "jwt",
    "orjson",
    "phonenumbers",
    "prometheus_client",
    "pydantic",
    "rich",
    "starlette",
    "structlog",
    "tomli_w",
    "uvicorn",
    "uvloop",
}

COMMANDS = [
    "up",
    "receive",
    "listen",
    "poll",
    "backfill",
    "tail",
    "send",
    "simulate",
    "dialpad",
    "doctor",
    "topics",
    "schemas",
    "spool",
    "config",
]


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """A receiver with two connections and an event of every subject that there is."""
    connections = {
        "acme": {"provider": "dialpad", "secrets": [SECRET], "region": "US"},
        "other": {"provider": "dialpad", "secrets": [OTHER_SECRET]},
    }
    with Product(tmp_path_factory.mktemp("cli"), {"connections": connections}) as running:
        for payload in samples().values():
            assert running.post(sign(payload)).status == 204
        deleted = {**samples()["contact-created"], "event": "Deleted"}
        assert running.post(sign(deleted)).status == 204
        assert running.post(sign({"of": "no known kind"})).status == 204
        for seq in range(3):
            assert running.post(sign(call(4242, seq), OTHER_SECRET), "other").status == 204
        assert running.post(sign(deleted, OTHER_SECRET), "other").status == 204
        yield running


def tail(product: Product, *arguments: str) -> list[dict[str, Any]]:
    return product.events(*arguments)


# Help


def test_help_is_quick_and_names_every_command(tmp_path: Path) -> None:
    """CPU time of the process: a busy machine does not make it slower."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ran = run("--help", cwd=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(times) < 0.5
    assert ran.code == 0
    for command in COMMANDS:
        assert re.search(rf"^\s+{command}\s+\w", ran.stdout, re.MULTILINE), command


@pytest.mark.parametrize("arguments", [(), ("tail",), ("topics",), ("send",)], ids=" ".join)
def test_help_loads_nothing_heavy(tmp_path: Path, arguments: Sequence[str]) -> None:
    code = (
        "import sys\n"
        "from consumers.cli import main\n"
        f"sys.argv = ['dialstream', *{list(arguments)!r}, '--help']\n"
        "try:\n    main()\n"
        "finally:\n    print('LOADED', *sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=tmp_path,
        env=clean_environment(PYTHONPATH=str(PROJECT)),
        capture_output=True,
        text=True,
    )
    loaded = done.stdout.partition("LOADED ")[2].split()
    assert "consumers.cli" in loaded
    # For the options of a command typer itself loads pydantic.
    assert HEAVY.intersection(loaded) <= ({"pydantic"} if arguments else set())


@pytest.mark.parametrize(
    "arguments",
    [
        ("up",),
        ("receive",),
        ("tail",),
        ("send",),
        ("doctor",),
        ("topics", "create"),
        ("schemas", "export"),
        ("config", "show"),
        ("listen",),
        ("poll",),
        ("backfill",),
        ("simulate", "dialpad"),
        ("dialpad", "sync"),
        ("spool", "show"),
        ("spool", "drain"),
    ],
    ids=" ".join,
)
def test_every_command_explains_itself(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with contextlib.chdir(tmp_path):
        ran = CliRunner().invoke(app, [*arguments, "--help"], prog_name="dialstream")
    assert ran.exit_code == 0
    assert f"Usage: dialstream {' '.join(arguments)}" in ran.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("nothing",),
        ("tail", "--nothing"),
        ("tail", "--count", "none"),
        ("tail", "--count", "0"),
        ("send",),
        ("topics", "nothing"),
        ("--nothing",),
        ("receive", "surplus"),
    ],
    ids=" ".join,
)
def test_wrong_use_ends_with_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with contextlib.chdir(tmp_path):
        ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 2
    assert ran.stdout == ""
    assert "Usage: " in ran.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_and_completes(tmp_path: Path, shell: str) -> None:
    ran = run(
        "--show-completion",
        shell,
        cwd=tmp_path,
        environment={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )
    assert ran.code == 0
    assert "_DIALSTREAM_COMPLETE" in ran.stdout
    completed = run(
        cwd=tmp_path,
        environment={
            "_DIALSTREAM_COMPLETE": f"complete_{shell}",
            "_TYPER_COMPLETE_ARGS": "dialstream sch",
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
            "COMP_WORDS": "dialstream sch",
            "COMP_CWORD": "1",
        },
    )
    assert "schemas" in completed.stdout


# tail


def test_tail_shows_everything_of_the_log_once(product: Product) -> None:
    events = tail(product)
    assert {event["type"].split(".")[1] for event in events} == {
        "call",
        "message",
        "contact",
        "agent",
        "change",
        "reject",
    }
    found = product.metrics().outcomes()
    assert len(events) == found["stored"] + found["rejected"]
    assert all(event["specversion"] == "1.0" for event in events)


def test_tail_of_subjects_shows_them_and_no_others(product: Product) -> None:
    everything = tail(product)
    for subjects in ({"reject"}, {"call", "agent"}):
        wanted = [event for event in everything if event["type"].split(".")[1] in subjects]
        assert tail(product, *subjects) == wanted
        assert wanted


def test_tail_of_a_type_shows_it_and_no_other(product: Product) -> None:
    wanted = [event for event in tail(product) if event["type"] == "dialstream.call.ended"]
    assert tail(product, "--type", "call.ended") == wanted
    assert tail(product, "--type", "dialstream.call.ended") == wanted
    assert wanted


def test_tail_of_a_connection_shows_it_and_no_other(product: Product) -> None:
    found = tail(product, "--connection", "other")
    assert len(found) == 4
    assert {event["connection"] for event in found} == {"other"}


def test_tail_of_an_id_shows_that_event(product: Product) -> None:
    (event,) = tail(product, "--count", "1")
    assert {found["id"] for found in tail(product, "--id", event["id"])} == {event["id"]}
    assert tail(product, "--id", "nothing") == []


def test_filters_of_tail_narrow_each_other(product: Product) -> None:
    (event,) = tail(product, "--connection", "other", "contact")
    assert event["type"] == "dialstream.contact.deleted"
    assert tail(product, "agent", "--connection", "other") == []
    assert tail(product, "call", "--type", "message.received") == []


def test_tail_ends_after_a_count(product: Product) -> None:
    everything = tail(product, "call")
    assert tail(product, "call", "--count", "5") == everything[:5]
    matching = [event for event in everything if event["connection"] == "other"]
    assert tail(product, "call", "--connection", "other", "--count", "2") == matching[:2]


def test_tombstones_are_shown_when_asked_for(product: Product) -> None:
    def tombstones(*arguments: str) -> list[Any]:
        return [line for line in tail(product, *arguments) if "specversion" not in line]

    assert tombstones() == []
    found = tombstones("--tombstones")
    assert {(each["topic"], each["data"]) for each in found} == {("contacts", None)}
    assert {each["key"].split("/")[0] for each in found} == {"acme", "other"}
    assert {
        each["key"].split("/")[0] for each in tombstones("--tombstones", "--connection", "acme")
    } == {"acme"}


def test_tail_for_people_is_a_line_for_each_event_without_colour_in_a_pipe(
    product: Product,
) -> None:
    ran = product.run("tail", "--from-beginning")
    assert ran.code == 0
    lines = ran.stdout.splitlines()
    assert len(lines) == len(tail(product))
    assert "\x1b" not in ran.stdout
    assert all(re.match(r"\d\d:\d\d:\d\d  [a-z]+\.[a-z_]+ ", line) for line in lines)
    assert any("call.ended" in line and "talk 1:36" in line for line in lines)
    shown = product.run("tail", "--from-beginning", "--tombstones", "contact").stdout
    assert "deleted" in shown


def _open_tail(product: Product, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [SCRIPT, "tail", *arguments],
        cwd=product.folder,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _line(running: subprocess.Popen[str]) -> dict[str, Any]:
    assert running.stdout is not None
    found: dict[str, Any] = json.loads(running.stdout.readline())
    return found


def test_following_in_a_pipe_goes_on_and_each_line_comes_at_once(product: Product) -> None:
    leg = new_leg()
    with _open_tail(product, "call", "--from-beginning", "--follow", "--json") as running:
        try:
            for _ in tail(product, "call"):
                _line(running)
            for seq in range(3):
                begun = time.monotonic()
                product.post(sign(call(leg, seq)))
                assert _line(running)["subject"] == f"call/{leg}"
                assert time.monotonic() - begun < 2
            assert running.poll() is None
        finally:
            running.send_signal(signal.SIGINT)
        assert running.wait(5) == 0
        assert running.stderr is not None
        assert running.stderr.read() == ""


def test_without_the_beginning_only_what_is_new_is_shown(product: Product) -> None:
    leg = new_leg()

    def post_until(stop: threading.Event) -> None:
        for seq in range(200):
            product.post(sign(call(leg, seq)))
            if stop.wait(0.05):
                return

    with _open_tail(product, "--json") as running:
        try:
            stop = threading.Event()
            posting = threading.Thread(target=post_until, args=(stop,))
            posting.start()
            first = _line(running)
            stop.set()
            posting.join()
            assert first["subject"] == f"call/{leg}"
        finally:
            running.kill()
            running.communicate()


def test_whoever_reads_a_part_of_it_ends_it_without_a_word(product: Product) -> None:
    for options in (("--json",), ()):
        with _open_tail(product, "--from-beginning", "--follow", *options) as running:
            assert running.stdout is not None
            assert running.stderr is not None
            running.stdout.readline()
            running.stdout.close()
            product.post(sign(call(new_leg(), 0)))
            assert running.wait(5) == 0
            assert running.stderr.read() == ""


def test_a_subject_that_does_not_exist_is_told_with_the_nearest_one(product: Product) -> None:
    ran = product.run("tail", "cal", "messages", "--from-beginning")
    assert ran.code == 2
    assert "did you mean call?" in ran.stderr
    assert "did you mean message?" in ran.stderr


def test_tail_needs_no_receiver_and_no_log(make_product: MakeProduct) -> None:
    product = make_product()
    assert tail(product) == []
    product.start()
    product.post(sign(call(1, 1)))
    product.kill()
    assert len(tail(product)) == 1
    # and it leaves the log as it was
    assert product.start().post(sign(call(1, 2))).status == 204
    assert len(tail(product)) == 2


def test_what_tail_cannot_read_is_told_beside_the_events_and_not_among_them(
    make_product: MakeProduct,
) -> None:
    product = make_product().start()
    product.post(sign(call(1, 1)))
    product.post(sign({"of": "no known kind"}))
    product.kill()
    (segment,) = (product.data / "journal" / "calls").glob("*.sqlite")
    for part in segment.parent.glob("*.sqlite-*"):
        part.unlink()
    segment.write_bytes(b"garbage" * 1000)
    ran = product.run("tail", "--from-beginning", "--json")
    assert [json.loads(line)["type"] for line in ran.stdout.splitlines()] == [
        "dialstream.reject.unknown_kind"
    ]
    assert segment.name in ran.stderr
    assert_no_traceback(ran.stderr)


def test_reading_makes_no_files(make_product: MakeProduct) -> None:
    """Not where there is nothing to read: a wrong folder stays as it is."""
    product = make_product()
    for arguments in (("tail", "--from-beginning"), ("config", "show")):
        product.run(*arguments)
    assert [path.name for path in product.folder.iterdir()] == ["dialstream.toml"]


# send


def test_send_signs_as_the_provider_would(product: Product, tmp_path: Path) -> None:
    leg = new_leg()
    (tmp_path / "call.json").write_text(json.dumps(call(leg, 0)))
    ran = product.run("send", str(tmp_path / "call.json"), "--connection", "acme")
    assert ran.code == 0
    assert "204" in ran.stdout
    (event,) = product.story(leg)
    assert event["data"]["raw"] == call(leg, 0)


def test_send_takes_several_files_and_stdin(product: Product) -> None:
    before = product.metrics().outcomes()["received"]
    files = [str(path) for path in sorted(SAMPLES.glob("sms-*.json"))]
    ran = product.run(
        "send", *files, "-", "--connection", "acme", stdin=json.dumps(call(new_leg(), 0)).encode()
    )
    assert ran.code == 0
    assert len(ran.stdout.splitlines()) == len(files) + 1
    assert product.metrics().outcomes()["received"] - before == len(files) + 1


def test_send_ends_with_1_unless_every_answer_is_2xx(product: Product, tmp_path: Path) -> None:
    file = str(SAMPLES / "sms-inbound-user.json")
    large = tmp_path / "large.json"
    large.write_text(json.dumps({"x": "y" * 2_000_000}))
    to_other = ("--to", f"http://127.0.0.1:{product.port}/webhooks/other")
    nowhere = ("--to", f"http://127.0.0.1:{product.port}/nowhere")
    cases: list[tuple[tuple[str, ...], str]] = [
        ((file, *to_other), "401"),
        ((file, *nowhere), "404"),
        ((str(large), file), "413"),
        ((file, "--to", "http://127.0.0.1:1/"), "does not answer"),
    ]
    for arguments, told in cases:
        ran = product.run("send", *arguments, "--connection", "acme")
        assert ran.code == 1, arguments
        assert told in ran.output
        assert_no_traceback(ran.output)


@pytest.fixture(autouse=True)
def _no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("DIALSTREAM_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("missing.json", "--connection", "acme"), "missing.json"),
        ((".", "--connection", "acme"), "."),
        (("x.json", "--connection", "nobody"), "acme"),
        (("x.json",), "--connection"),
        (("x.json", "--connection", "acme", "--to", "http://[broken"), "--to"),
        (("x.json", "--connection", "acme", "--to", "nonsense"), "nonsense"),
    ],
)
def test_send_used_wrongly_says_how_and_shows_no_traceback(
    product: Product, arguments: tuple[str, ...], told: str
) -> None:
    (product.folder / "x.json").write_text("{}")
    ran = product.run("send", *arguments)
    assert ran.code in (1, 2)
    assert told in ran.output
    assert_no_traceback(ran.output)


# doctor


def findings(product: Product) -> tuple[int, list[dict[str, str]]]:
    with contextlib.chdir(product.folder), contextlib.redirect_stdout(io.StringIO()) as said:
        code = show(diagnose(product.config), as_json=True)
    return code, json.loads(said.getvalue())


def bad(product: Product) -> str:
    """What the doctor found that has to be mended, as one text."""
    code, found = findings(product)
    wrong = [finding for finding in found if finding["state"] == "bad"]
    assert code == (1 if wrong else 0)
    assert all(finding["mend"] for finding in wrong), "every finding comes with its mend"
    return json.dumps(wrong)


def test_doctor_finds_a_good_set_up_good(make_product: MakeProduct) -> None:
    product = make_product()
    assert bad(product) == "[]"
    product.start().post(sign(call(1, 1)))
    assert bad(product) == "[]"
    ran = product.run("doctor")
    assert ran.code == 0
    assert "✓" in ran.stdout
    assert "\x1b" not in ran.stdout
    # and it does not disturb
    assert product.post(sign(call(1, 2))).status == 204
    product.kill()
    assert bad(product) == "[]"


def test_doctor_tells_all_faults_of_the_settings(make_product: MakeProduct) -> None:
    product = make_product(settings={"receiver": {"prot": 1}, "admin": {"port": -1}})
    for ran in (product.run("doctor"), product.run("doctor", "--json")):
        assert ran.code == 1
        assert "receiver.prot" in ran.stdout
        assert "admin.port" in ran.stdout
        assert ran.stderr == ""


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a file system in memory")
def test_doctor_refuses_a_log_in_memory(make_product: MakeProduct) -> None:
    folder = Path(f"/dev/shm/dialstream-test-{os.getpid()}")
    try:
        assert "memory" in bad(make_product(settings={"eventlog": {"path": str(folder)}}))
    finally:
        subprocess.run(["rm", "-rf", folder], check=True)


def test_doctor_refuses_a_secret_that_others_can_read(make_product: MakeProduct) -> None:
    product = make_product()
    file = product.folder / "secret.txt"
    file.write_text(SECRET)
    table = {"provider": "dialpad", "secret_files": ["secret.txt"], "region": "US"}
    product.configure({"connections": {"acme": table}})
    file.chmod(0o644)
    assert "secret.txt" in bad(product)
    file.chmod(0o600)
    assert bad(product) == "[]"


def test_doctor_finds_a_damaged_file(make_product: MakeProduct) -> None:
    product = make_product().start()
    for seq in range(5):
        product.post(sign(call(1, seq)))
    product.kill()
    (segment,) = (product.data / "journal" / "calls").glob("*.sqlite")
    content = segment.read_bytes()
    for damage in (
        b"garbage" * 1000,
        content[:100] + b"\xff" * 4000 + content[4100:],
        content[: len(content) // 2],
    ):
        for part in segment.parent.glob("*.sqlite-*"):
            part.unlink()
        segment.write_bytes(damage)
        assert segment.name in bad(product)


def test_doctor_finds_a_data_directory_that_is_none(make_product: MakeProduct) -> None:
    product = make_product()
    (product.folder / "data").write_text("a file")
    assert "data" in bad(product)


def test_doctor_finds_a_host_that_is_none(make_product: MakeProduct) -> None:
    product = make_product(settings={"receiver": {"host": "no-such-host.invalid"}})
    assert "receiver" in bad(product)


def test_doctor_finds_a_region_that_is_none(make_product: MakeProduct) -> None:
    product = make_product()
    table = {"provider": "dialpad", "secrets": [SECRET], "region": "XX"}
    product.configure({"connections": {"acme": table}})
    assert "region" in bad(product)


def test_doctor_finds_a_port_that_somebody_else_has(make_product: MakeProduct) -> None:
    product = make_product()
    with socket.create_server(("127.0.0.1", product.port)):
        code, found = findings(product)
    told = json.dumps([finding for finding in found if finding["state"] != "good"])
    assert str(product.port) in told, "a stranger on our port is not good"
    assert code in (0, 1)


def test_doctor_makes_no_secret_known(make_product: MakeProduct) -> None:
    product = make_product()
    table = {"provider": "dialpad", "secrets": ["short-secret"], "region": "US"}
    product.configure({"connections": {"acme": table}})
    ran = product.run("doctor")
    assert "acme" in ran.stdout
    assert "short-secret" not in ran.output


# Starting


def refused(product: Product) -> Ran:
    """What `receive` says when it cannot start."""
    ran = product.run("receive")
    assert ran.code == 2, ran
    assert ran.stdout == ""
    assert_no_traceback(ran.stderr)
    assert ran.stderr.startswith("dialstream cannot start:\n  - ")
    return ran


def test_a_second_receiver_on_one_data_directory_is_refused_with_the_mend(
    make_product: MakeProduct,
) -> None:
    first = make_product("first").start()
    second = make_product("second", settings={"eventlog": {"path": str(first.data)}})
    said = refused(second).stderr
    assert str(first.data) in said
    assert "stop" in said
    assert second.run("up").code == 2
    assert first.post(sign(call(1, 1))).status == 204
    # Other commands run beside it.
    assert len(tail(second)) == 1
    assert second.run("topics", "create").code == 0
    # A crash leaves no lock behind.
    first.kill()
    assert second.start().post(sign(call(1, 2))).status == 204


@pytest.mark.parametrize("section", ["receiver", "admin"])
def test_a_port_that_is_taken_is_refused_with_its_setting(
    make_product: MakeProduct, section: str
) -> None:
    product = make_product()
    port = product.port if section == "receiver" else product.admin_port
    with socket.create_server(("127.0.0.1", port)):
        said = refused(product).stderr
    assert f"{section}.port" in said
    assert str(port) in said
    # and what it had taken is free again
    assert product.start().readyz() == 200


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
def test_a_host_that_is_not_ours_is_refused_with_its_setting(
    make_product: MakeProduct, host: str
) -> None:
    assert "receiver." in refused(make_product(settings={"receiver": {"host": host}})).stderr


def test_a_data_directory_that_cannot_be_made_is_refused(make_product: MakeProduct) -> None:
    product = make_product()
    (product.folder / "data").write_text("a file")
    assert "eventlog.path" in refused(product).stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unwritable for root")
def test_a_data_directory_without_write_permission_is_refused(make_product: MakeProduct) -> None:
    product = make_product()
    product.data.mkdir(mode=0o500)
    try:
        assert "eventlog.path" in refused(product).stderr
    finally:
        product.data.chmod(0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("place", ["data", "data/journal", "data/journal/calls"])
def test_a_data_directory_of_somebody_else_is_refused_or_answers_503(
    make_product: MakeProduct, tmp_path: Path, place: str
) -> None:
    """As root it is the immutable flag that says no; without it there is nothing to see."""
    product = make_product()
    folder = product.folder / place
    folder.mkdir(parents=True)
    if subprocess.run(["chattr", "+i", folder], check=False, capture_output=True).returncode:
        pytest.skip("this file system knows no immutable folders")
    try:
        process = product.spawn()
        until = time.monotonic() + 10
        while product.readyz() is None and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.05)
        if process.poll() is None:
            assert product.post(sign(call(1, 1))).status == 503
            product.kill()
        else:
            assert process.returncode == 2
            assert "eventlog.path" in product.stderr
        assert_no_traceback(product.stderr)
    finally:
        subprocess.run(["chattr", "-i", folder], check=True)


@pytest.mark.parametrize(
    "command",
    [
        ["tail", "--from-beginning"],
        ["trace", "1"],
        ["explain", "1"],
        ["drift"],
        ["erase", "+15551230001", "--yes"],
        ["rejects", "list"],
        ["rejects", "redrive"],
        ["quarantine", "list"],
        ["quarantine", "requeue"],
    ],
    ids=" ".join,
)
def test_of_a_connection_that_is_misspelt_it_does_not_say_that_there_is_nothing(
    product: Product, command: list[str]
) -> None:
    ran = product.run(*command, "--connection", "acne")
    assert (ran.code, ran.stdout) == (2, "")
    assert "there is no 'acne'; there are: acme, other" in ran.stderr


def test_started_tells_where_it_listens(product: Product) -> None:
    (line,) = product.log("started")
    assert line["address"] == f"http://127.0.0.1:{product.port}"
    assert line["admin_address"] == f"http://127.0.0.1:{product.admin_port}"
    assert line["connections"] == ["acme", "other"]


def test_port_0_tells_which_port_it_got(make_product: MakeProduct) -> None:
    product = make_product()
    product.configure({"receiver": {"port": 0}})
    product.start()
    (line,) = product.wait_for_log("started")
    port = int(line["address"].rpartition(":")[2])
    assert port > 0
    with socket.create_connection(("127.0.0.1", port), 2):
        pass


def test_health_and_metrics_are_on_the_admin_port_only(product: Product) -> None:
    for path in ("/livez", "/readyz", "/metrics"):
        assert product.admin(path).status == 200
    ready = json.loads(product.admin("/readyz").body)
    assert ready == {"ready": True, "reason": None, "degraded": []}
    assert product.admin("/webhooks/acme").status == 404
    assert product.admin("/metrics").headers["content-type"].startswith("text/plain")


# The rest


def test_topics_create_makes_every_topic_and_changes_none(make_product: MakeProduct) -> None:
    product = make_product()
    first = product.run("topics", "create")
    assert first.code == 0
    for topic in ("calls", "messages", "contacts", "rejects", "checkpoints"):
        assert topic in first.stdout
        assert (product.data / "journal" / topic).is_dir()
    second = product.run("topics", "create")
    assert second.code == 0
    assert "made" not in second.stdout
    assert product.start().post(sign(call(1, 1))).status == 204


def test_schemas_export_tells_where_it_wrote(tmp_path: Path) -> None:
    ran = run("schemas", "export", cwd=tmp_path)
    assert ran.code == 0
    assert "published" in ran.stdout
    assert list(tmp_path.iterdir()) == []
