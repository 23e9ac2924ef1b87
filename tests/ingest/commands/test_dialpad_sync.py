"""`dialstream dialpad sync` on the simulated Dialpad: what people see, and what comes of it."""

import asyncio
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from signal import SIGHUP
from typing import Any

import pytest

from ingest.api import Budget
from ingest.commands import dialpad_rotate
from ingest.commands.dialpad_rotate import RETRIES_S, rotate_secret
from ingest.commands.dialpad_sync import sync_subscriptions
from ingest.errors import ConfigError
from ingest.providers.dialpad.api import DialpadApi
from ingest.settings import load_settings
from tests.conftest import MakeProduct
from tests.ingest.commands.running_dialpad import PUBLIC_URL, RunningDialpad
from tests.ingest.scripted import scripted
from tests.ingest.sockets import SOON_S
from tests.kit import (
    OTHER_SECRET,
    SECRET,
    Product,
    Ran,
    assert_no_traceback,
    call,
    free_ports,
    new_leg,
    sign,
)

FOREIGN = "a-secret-that-somebody-else-has-made-up!"


ALL_MADE = {
    "call": 1,
    "sms": 1,
    "contact": 2,
    "agent_status": 1,
    "changelog": 1,
    "webhooks": 5,
    "websockets": 0,
}
NOTHING = dict.fromkeys(ALL_MADE, 0)


@pytest.fixture
def running() -> Iterator[RunningDialpad]:
    with RunningDialpad() as found:
        yield found


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate is tested elsewhere; and no request of one test waits for those of another."""

    async def at_once(*budgets: Budget) -> None:
        pass

    monkeypatch.setattr("ingest.api.take_turn", at_once)
    monkeypatch.setattr("ingest.api._FIRST_WAIT_S", 0.01)
    monkeypatch.setattr("ingest.api._MAX_WAIT_S", 0.01)
    monkeypatch.setattr("ingest.api._JITTER_S", 0.0)


def configured(product: Product, running: RunningDialpad, **more: Any) -> Product:
    product.configure({"connections": {"acme": running.connection(**more)}})
    return product


def sync(product: Product, *, dry_run: bool = False, adopt: bool = False) -> int:
    """In this process, without the start of another."""
    return sync_subscriptions(
        load_settings(product.config, {}), None, dry_run=dry_run, adopt=adopt, as_json=False
    )


def assert_tells_no_secret(text: str, running: RunningDialpad) -> None:
    for private in (SECRET, OTHER_SECRET, FOREIGN, running.dialpad.api_key, "/events/", "?token="):
        assert private not in text
    assert_no_traceback(text)


# As people see it


def test_a_first_sync_shows_makes_and_then_has_nothing_to_do(
    make_product: MakeProduct, running: RunningDialpad
) -> None:
    product = configured(make_product(), running)
    dry = product.run("dialpad", "sync", "--dry-run")
    assert (dry.code, dry.stderr) == (1, "")
    assert running.counts() == NOTHING, "dry"
    lines = dry.stdout.splitlines()
    assert lines[0] == "acme"
    assert f"  + webhook {PUBLIC_URL}/webhooks/acme/agent_status: missing" in lines
    assert "  + subscription to local contact: missing" in lines
    assert lines[-1] == "  11 to create; nothing was changed"

    done = product.run("dialpad", "sync")
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "  11 done"
    assert running.counts() == ALL_MADE

    again = product.run("dialpad", "sync", "--dry-run")
    assert again.code == 0
    assert all(line.startswith("  = ") for line in again.stdout.splitlines()[1:-1])
    assert again.stdout.splitlines()[-1] == "  nothing to do"
    for ran in (dry, done, again):
        assert_tells_no_secret(ran.output, running)


def test_programs_get_json(make_product: MakeProduct, running: RunningDialpad) -> None:
    product = configured(make_product(), running, subscriptions={"kinds": ["call"]})
    dry = product.run("dialpad", "sync", "--dry-run", "--json")
    assert dry.code == 1
    (report,) = json.loads(dry.stdout)
    assert report["connection"] == "acme"
    assert report["error"] is None
    assert [step["done"] for step in report["steps"]] == [False, False]
    done = product.run("dialpad", "sync", "--json", "--connection", "acme")
    assert (done.code, done.stderr) == (0, "")
    (report,) = json.loads(done.stdout)
    webhook, subscription = report["steps"]
    assert webhook == {
        "verb": "create",
        "kind": "call",
        "what": f"webhook {PUBLIC_URL}/webhooks/acme/call",
        "id": str(next(iter(running.dialpad.resources.webhooks))),
        "reasons": [{"what": "deleted", "text": "missing"}],
        "done": True,
    }
    assert subscription["done"]
    assert_tells_no_secret(done.output, running)


def test_each_change_is_a_line_that_says_from_what_to_what(
    make_product: MakeProduct, running: RunningDialpad, capsys: pytest.CaptureFixture[str]
) -> None:
    product = configured(make_product(), running, subscriptions={"kinds": ["call", "sms"]})
    assert sync(product) == 0
    store = running.dialpad.resources
    (of_calls,) = store.subscriptions["call"].values()
    of_calls.fields |= {"enabled": False, "call_states": ["hangup"]}
    (of_texts,) = store.subscriptions["sms"].values()
    next(w for w in store.webhooks.values() if w.hook_url.endswith("/sms")).secret = FOREIGN
    theirs = store.create_webhook({"hook_url": "https://crm.example/in?token=t", "secret": None})
    store.create_subscription("call", {"endpoint_id": theirs.id}, frozenset())
    capsys.readouterr()
    assert sync(product) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        f"  ~ webhook {PUBLIC_URL}/webhooks/acme/sms ({of_texts.endpoint_id}): with a secret that "
        "is not ours → with ours" in lines
    )
    assert (
        f"  ~ subscription to call ({of_calls.id}): call_states hangup → all; enabled off → on"
        in lines
    )
    assert len(store.subscriptions["call"]) == 2
    assert sync(product, adopt=True) == 0
    assert len(store.subscriptions["call"]) == 1
    assert_tells_no_secret("".join(lines) + capsys.readouterr().out, running)


def test_events_for_a_websocket_that_nobody_listens_to_are_warned_of(
    make_product: MakeProduct, running: RunningDialpad, capsys: pytest.CaptureFixture[str]
) -> None:
    by_socket = {"subscriptions": {"transport": "websocket"}}
    product = configured(make_product(), running, **by_socket)
    assert sync(product) == 0
    assert "acme: nobody listens to its websocket" in capsys.readouterr().err
    assert running.counts() == ALL_MADE | {"webhooks": 0, "websockets": 1}
    configured(product, running, **by_socket, stream={"enabled": True})
    assert sync(product) == 0
    assert capsys.readouterr().err == ""


def test_a_key_without_a_scope_leaves_that_kind_and_says_so(
    make_product: MakeProduct, running: RunningDialpad, capsys: pytest.CaptureFixture[str]
) -> None:
    running.dialpad.faults.missing_scopes = ("change_log",)
    product = configured(make_product(), running)
    assert sync(product) == 1
    told = capsys.readouterr()
    assert "subscriptions of: changelog" in told.err
    assert "subscriptions.kinds" in told.err
    assert running.counts() == ALL_MADE | {"changelog": 0, "webhooks": 4}
    configured(product, running, subscriptions={"kinds": ["call", "sms"]})
    assert sync(product) == 0
    assert running.counts() == NOTHING | {"call": 1, "sms": 1, "webhooks": 2}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"key_revoked": True}, "answered 401: the key is not accepted"),
        ({"broken": 1.0}, "answered 50"),
        ({"html": 1.0}, "is not what it should be"),
        ({"refused": 1.0}, "acme: GET /api/v2/webhooks"),
    ],
)
def test_an_api_that_fails_is_told_in_a_line(
    make_product: MakeProduct,
    running: RunningDialpad,
    capsys: pytest.CaptureFixture[str],
    fault: dict[str, Any],
    words: str,
) -> None:
    for name, value in fault.items():
        setattr(running.dialpad.faults, name, value)
    product = configured(make_product(), running)
    assert sync(product) == 1
    told = capsys.readouterr()
    assert words in told.err
    assert told.err.startswith("acme: ")
    assert_tells_no_secret(told.err, running)


def test_another_connection_is_synced_though_one_fails(
    make_product: MakeProduct, running: RunningDialpad, capsys: pytest.CaptureFixture[str]
) -> None:
    good = running.connection(secrets=[OTHER_SECRET])
    bad = running.connection(api_key="another-key")
    product = make_product()
    product.configure({"connections": {"bad": bad, "good": good, "bare": bare()}})
    assert sync(product) == 1
    assert running.counts() == ALL_MADE
    assert capsys.readouterr().err.startswith("bad: ")


def bare() -> dict[str, Any]:
    return {"provider": "dialpad", "secrets": [SECRET]}


@pytest.mark.parametrize(
    ("connections", "arguments", "fault"),
    [
        ({"acme": bare()}, (), "none can be synced"),
        ({"acme": bare()}, ("--connection", "acme"), "connections.acme.api_key: there is none"),
        (
            {"acme": {**bare(), "api_key": "k"}},
            ("--connection", "acme"),
            "connections.acme.public_url: there is none",
        ),
        ({"acme": bare()}, ("--connection", "acne"), "there is no connection 'acne'"),
        ({"acme": bare()}, ("--reloaded",), "only with --rotate-secret"),
        ({"acme": bare()}, ("--rotate-secret", "--adopt"), "not with --adopt"),
        (
            {"acme": {**bare(), "api_key": "k", "public_url": PUBLIC_URL}},
            ("--rotate-secret",),
            "rotating needs two files",
        ),
        (
            {
                "one": {**bare(), "api_key": "k", "public_url": PUBLIC_URL},
                "two": {**bare(), "api_key": "k", "stream": {"enabled": True}},
            },
            (),
            "have a secret in common",
        ),
    ],
)
def test_wrong_use_is_exit_2_with_the_mend(
    make_product: MakeProduct,
    connections: dict[str, Any],
    arguments: tuple[str, ...],
    fault: str,
) -> None:
    product = make_product()
    product.configure({"connections": connections})
    ran = product.run("dialpad", "sync", *arguments)
    assert (ran.code, ran.stdout) == (2, "")
    assert fault in " ".join(ran.stderr.split())
    assert_no_traceback(ran.stderr)


# With faults on the way


def test_with_answers_lost_everywhere_it_comes_to_the_same_and_doubles_nothing(
    make_product: MakeProduct, running: RunningDialpad
) -> None:
    product = configured(make_product(), running)
    faults = running.dialpad.faults
    faults.cut, faults.broken, faults.page_changes = 0.15, 0.1, 0.2
    until = time.monotonic() + 60
    while sync(product) != 0:
        assert time.monotonic() < until
    assert faults.counts["cut"] > 0
    faults.cut = faults.broken = faults.page_changes = 0.0
    sync(product)
    assert running.counts() == ALL_MADE
    assert sync(product, dry_run=True) == 0


@pytest.mark.parametrize("request_number", range(7, 18))
def test_an_answer_lost_after_a_creation_is_looked_for(
    make_product: MakeProduct, running: RunningDialpad, request_number: int
) -> None:
    """Seven lists, then what is created: a webhook a kind, and six subscriptions."""
    product = configured(make_product(), running)
    running.dialpad.faults.force("cut", after=request_number)
    assert sync(product) == 0
    assert running.dialpad.faults.counts["cut"] == 1
    asked = [each for each in running.dialpad.requests if each.method != "GET"]
    assert [each.method for each in asked] == ["POST"] * 11
    assert running.counts() == ALL_MADE


# Rotation


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "first", tmp_path / "second"
    for each in (first, second):
        each.write_text(SECRET + "\n")
        each.chmod(0o600)
    return first, second


def with_files(files: tuple[Path, Path], running: RunningDialpad, **more: Any) -> dict[str, Any]:
    settings = running.connection(secret_files=[str(each) for each in files], **more)
    del settings["secrets"]
    return settings


def rotate(product: Product, *, wait_s: float = 0.0, reloaded: bool = False) -> int:
    settings = load_settings(product.config, {})
    return rotate_secret(settings, None, dry_run=False, reloaded=reloaded, wait_s=wait_s)


def secrets_at(running: RunningDialpad) -> set[str | None]:
    store = running.dialpad.resources
    webhooks = {each.secret for each in store.webhooks.values()}
    return webhooks | {each.secret for each in store.websockets.values()}


def make_old(file: Path) -> None:
    """Retries are over."""
    long_ago = time.time() - RETRIES_S - 60
    os.utime(file, (long_ago, long_ago))


def test_a_rotation_waits_for_the_receiver_and_nothing_is_refused_meanwhile(
    make_product: MakeProduct, running: RunningDialpad, files: tuple[Path, Path]
) -> None:
    first, second = files
    product = make_product()
    public = f"http://127.0.0.1:{product.port}"
    product.configure({"connections": {"acme": with_files(files, running, public_url=public)}})
    product.start()
    assert sync(product) == 0
    assert secrets_at(running) == {SECRET}

    assert rotate(product) == 1, "nobody has sent SIGHUP"
    new = first.read_text().strip()
    assert (second.read_text(), len(new) >= 32, new != SECRET) == (SECRET + "\n", True, True)
    assert [stat.S_IMODE(each.stat().st_mode) for each in files] == [0o600, 0o600]
    assert secrets_at(running) == {SECRET}
    assert product.post(sign(call(new_leg(), 0))).status == 204

    assert rotate(product) == 1, "still not"
    assert first.read_text().strip() == new, "no newer one"
    product.signal(SIGHUP)
    product.wait_for_log("secrets_reloaded")
    assert rotate(product, wait_s=20) == 0
    assert secrets_at(running) == {new}
    for secret in (new, SECRET):
        assert product.post(sign(call(new_leg(), 0), secret)).status == 204

    assert rotate(product) == 1, "retries may still come"
    assert second.read_text().strip() == SECRET
    make_old(second)
    assert rotate(product) == 1
    assert second.read_text().strip() == new, "the former one is away"
    assert product.stop() == 0
    assert not product.events("reject"), "asking leaves nothing behind"
    assert_tells_no_secret(product.stderr, running)
    assert new not in product.stderr


def test_where_nobody_answers_only_the_word_of_the_user_goes_on(
    make_product: MakeProduct,
    running: RunningDialpad,
    files: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    product = make_product()
    (port,) = free_ports(1)
    settings = with_files(files, running, public_url=f"http://127.0.0.1:{port}")
    settings |= {"subscriptions": {"transport": "websocket"}}
    product.configure({"connections": {"acme": settings}})
    assert sync(product) == 0
    capsys.readouterr()
    assert rotate(product) == 1
    told = capsys.readouterr()
    assert "no receiver answers" in told.err
    assert "SIGHUP" in told.out
    assert secrets_at(running) == {SECRET}
    assert rotate(product, reloaded=True) == 0
    new = files[0].read_text().strip()
    assert secrets_at(running) == {new}
    assert new not in capsys.readouterr().out + told.out + told.err


@pytest.mark.parametrize("crash", range(8))
def test_after_a_crash_anywhere_both_files_hold_what_dialpad_signs_with(
    make_product: MakeProduct,
    running: RunningDialpad,
    files: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    crash: int,
) -> None:
    """A crash is an exception that nobody expects, before or after each of the writes."""
    product = make_product()
    settings = with_files(files, running, subscriptions={"kinds": ["call", "sms"]})
    product.configure({"connections": {"acme": settings}})
    assert sync(product) == 0
    files[1].write_text(OTHER_SECRET)  # of a rotation long ago
    make_old(files[1])
    moments = iter(range(100))

    class Crash(BaseException):
        pass

    def moment() -> None:
        known = {each.read_text().strip() for each in files}
        assert secrets_at(running) <= known
        if next(moments) == crash:
            raise Crash

    really_write = dialpad_rotate._write
    really_patch = DialpadApi.patch

    def write(path: Path, secret: str) -> None:
        moment()
        really_write(path, secret)
        moment()

    async def patch(self: Any, path: str, body: Any) -> Any:
        moment()
        answer = await really_patch(self, path, body)
        moment()
        return answer

    with monkeypatch.context() as patched:
        patched.setattr(dialpad_rotate, "_write", write)
        patched.setattr(DialpadApi, "patch", patch)
        with pytest.raises(Crash):
            rotate(product, reloaded=True)
    known = {each.read_text().strip() for each in files}
    assert secrets_at(running) <= known
    code = rotate(product, reloaded=True)
    if crash == 7:
        assert code == 1, "it was done: the former secret has to stay for its retries"
    else:
        assert code == 0
    assert secrets_at(running) == {files[0].read_text().strip()}
    assert files[1].read_text().strip() == SECRET
    assert [stat.S_IMODE(each.stat().st_mode) for each in files] == [0o600, 0o600]
    assert len(list(files[0].parent.glob(".first*"))) == 0


def test_the_former_secret_stays_for_its_retries_whenever_it_was_written(
    make_product: MakeProduct,
    running: RunningDialpad,
    files: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It counts from when Dialpad stopped using it, also if we did not live to see that."""
    product = make_product()
    settings = with_files(files, running, subscriptions={"kinds": ["call"]})
    product.configure({"connections": {"acme": settings}})
    assert sync(product) == 0
    files[0].write_text(OTHER_SECRET)
    make_old(files[1])
    really_patch = DialpadApi.patch

    async def patch(self: Any, path: str, body: Any) -> Any:
        await really_patch(self, path, body)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(DialpadApi, "patch", patch)
        with pytest.raises(KeyboardInterrupt):
            rotate(product, reloaded=True)
    assert secrets_at(running) == {OTHER_SECRET}
    assert rotate(product, reloaded=True) == 1
    assert [each.read_text().strip() for each in files] == [OTHER_SECRET, SECRET]


def test_a_rotation_needs_something_of_ours_that_is_in_order(
    make_product: MakeProduct,
    running: RunningDialpad,
    files: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    product = make_product()
    product.configure({"connections": {"acme": with_files(files, running)}})
    assert rotate(product, reloaded=True) == 1
    assert "dialstream dialpad sync" in capsys.readouterr().err
    assert sync(product) == 0
    next(iter(running.dialpad.resources.webhooks.values())).secret = FOREIGN
    assert rotate(product, reloaded=True) == 1
    assert files[0].read_text().strip() == SECRET


def test_a_dry_rotation_and_files_that_cannot_be_written(
    make_product: MakeProduct,
    running: RunningDialpad,
    files: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    product = make_product()
    product.configure({"connections": {"acme": with_files(files, running)}})
    assert sync(product) == 0
    ran: Ran = product.run("dialpad", "sync", "--rotate-secret", "--dry-run")
    assert (ran.code, ran.stderr) == (1, "")
    assert "a new secret goes into" in ran.stdout

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ingest.commands.dialpad_rotate.tempfile.mkstemp", full)
    capsys.readouterr()
    assert rotate(product, reloaded=True) == 1
    assert "cannot be written (No space left on device)" in capsys.readouterr().err
    assert {each.read_text().strip() for each in files} == {SECRET}
    same = with_files((files[0], files[0]), running)
    product.configure({"connections": {"acme": same}})
    with pytest.raises(ConfigError, match="rotating needs two files"):
        rotate(product)


async def test_who_answers_without_end_is_no_receiver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialpad_rotate, "_PROBE_S", 0.5)

    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 401 No\r\ncontent-length: 1000000\r\n\r\n")
        with suppress(ConnectionError):
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.1)

    async with scripted(drip) as server, asyncio.timeout(SOON_S):
        assert await dialpad_rotate._ask(server.url, b"x") == "silent"
