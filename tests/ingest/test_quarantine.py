"""What did not verify is kept: bounded, sampled, for its owner's eyes, and never in the way."""

import asyncio
import os
import random
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from ingest.delivery import Delivery
from ingest.providers.dialpad.webhook import Webhook
from ingest.quarantine import File, Keeper, Refused, Shelf, files_in
from ingest.settings import Quarantine
from schemas.times import now_ms
from tests.kit import OTHER_SECRET, SECRET, call, sign

HOUR_MS = 3_600_000


def delivery(
    body: bytes = b"garbage", received_ms: int | None = None, connection: str = "acme"
) -> Delivery:
    return Delivery(
        connection=connection,
        via="webhook",
        headers=[(b"content-type", b"application/jwt")],
        body=body,
        received_ms=now_ms() if received_ms is None else received_ms,
    )


def refused(reason: str, received_ms: int, body: bytes = b"garbage") -> Refused:
    return Refused(
        connection="acme",
        via="webhook",
        hint=None,
        reason=reason,
        received_ms=received_ms,
        headers=[],
        body=body,
    )


def until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def end(keeper: Keeper) -> None:
    """Once all is written, however slow the machine."""
    keeper.close()
    if keeper._thread is not None:
        keeper._thread.join(60)


def bodies(folder: Path) -> list[bytes]:
    found = [file.read() for file in files_in(folder)]
    assert None not in found
    return [one.body for one in found if one is not None]


# The keeper


def test_what_is_offered_can_be_read_as_it_came(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "quarantine", Quarantine())
    token = sign(call(1, 0), OTHER_SECRET)
    keeper.offer(
        Delivery(
            connection="acme",
            via="webhook",
            headers=[(b"x-odd", b"\xff\x00"), (b"x-odd", b"twice")],
            body=token,
            received_ms=1_790_000_000_000,
            hint="call",
        ),
        "bad_signature",
    )
    end(keeper)
    # It is too old by now, and goes with the next look.
    (file,) = files_in(tmp_path / "quarantine" / "acme")
    assert (file.connection, file.reason) == ("acme", "bad_signature")
    assert file.received_ms == 1_790_000_000_000
    assert file.read() == Refused(
        connection="acme",
        via="webhook",
        hint="call",
        reason="bad_signature",
        received_ms=1_790_000_000_000,
        headers=[(b"x-odd", b"\xff\x00"), (b"x-odd", b"twice")],
        body=token,
    )


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_nobody_else_may_look(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        keeper = Keeper(tmp_path / "quarantine", Quarantine())
        keeper.offer(delivery(), "not_a_jws")
        end(keeper)
    finally:
        os.umask(before)
    (file,) = files_in(tmp_path / "quarantine" / "acme")
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    for folder in (file.path.parent, tmp_path / "quarantine"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_what_came_within_a_millisecond_stays_in_its_order(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "acme", Quarantine())
    came = [f"{n}".encode() for n in range(50)]
    for n, body in enumerate(came):
        assert shelf.put(refused(("not_a_jws", "bad_signature")[n % 2], now_ms(), body))
    same_ms = [refused("empty", 1_790_000_000_000, body) for body in came]
    again = Shelf(tmp_path / "beta", Quarantine(max_age_s=10**9))
    for one in same_ms:
        assert again.put(one)
    assert bodies(tmp_path / "acme") == bodies(tmp_path / "beta") == came


def test_a_flood_fills_neither_the_disk_nor_the_place_of_what_was_there(tmp_path: Path) -> None:
    """100,000 in five minutes; of 100 that there is room for, ten of a reason and minute go in."""
    bounds = Quarantine(max_count=100)
    shelf = Shelf(tmp_path / "acme", bounds)
    night_ms = now_ms() - 8 * HOUR_MS
    for number in range(5):
        shelf.put(refused("bad_signature", night_ms + number, b"of last night"))

    keeper = Keeper(tmp_path, bounds)
    begun_ms = now_ms() - 600_000
    begun_ms -= begun_ms % 60_000
    for number in range(100_000):
        keeper.offer(delivery(b"flood", begun_ms + number * 3), "not_a_jws")
    keeper.offer(delivery(b"amid the flood", begun_ms + 299_999), "bad_signature")
    end(keeper)
    found = Counter(bodies(tmp_path / "acme"))
    assert found == {b"of last night": 5, b"flood": 50, b"amid the flood": 1}


def test_a_flood_at_one_connection_takes_nothing_from_another(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, Quarantine(max_count=100))
    at_ms = now_ms()
    for _ in range(1000):
        keeper.offer(delivery(b"flood", at_ms), "not_a_jws")
    keeper.offer(delivery(b"the same minute", at_ms, "beta"), "not_a_jws")
    end(keeper)
    assert bodies(tmp_path / "acme") == [b"flood"] * 10
    assert bodies(tmp_path / "beta") == [b"the same minute"]


def test_floods_day_after_day_make_room_for_themselves(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, Quarantine(max_count=60, max_age_s=7 * 86_400))
    begun_ms = now_ms() - 48 * HOUR_MS
    shelf.put(refused("bad_signature", begun_ms, b"before"))
    for hour in range(1, 40):
        for number in range(20):
            shelf.put(refused("not_a_jws", begun_ms + hour * HOUR_MS + number, b"flood"))
    found = files_in(tmp_path)
    assert len(found) == 60
    assert b"before" in bodies(tmp_path)
    hours = Counter(file.received_ms // HOUR_MS for file in found if file.reason == "not_a_jws")
    assert max(hours.values()) <= 3, "of each hour a few"


def test_bytes_are_bounded_too(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, Quarantine(max_bytes=50_000))
    at_ms = now_ms()
    assert not shelf.put(refused("not_a_jws", at_ms, bytes(60_000))), "it would be all alone"
    for number in range(100):
        shelf.put(refused("not_a_jws", at_ms + number, bytes(3000)))
    shelf.put(refused("empty", at_ms, b""))
    assert sum(file.path.stat().st_size for file in files_in(tmp_path)) <= 50_000
    assert len(files_in(tmp_path)) > 5
    assert b"" in bodies(tmp_path)

    keeper = Keeper(tmp_path / "other", Quarantine(max_bytes=100_000))
    for number in range(100):
        keeper.offer(delivery(bytes(3000), at_ms // 60_000 * 60_000 + number), "not_a_jws")
    end(keeper)
    assert len(files_in(tmp_path / "other" / "acme")) == 3, "a tenth of it in a minute"


def test_what_is_too_old_goes_also_if_nothing_comes(tmp_path: Path) -> None:
    old = Shelf(tmp_path / "gone", Quarantine())
    old.put(refused("empty", now_ms() - 10_000))
    old.put(refused("empty", now_ms() - 3_600_000))
    keeper = Keeper(tmp_path, Quarantine(max_age_s=600))
    asyncio.run(keeper.tidy())
    until(lambda: len(files_in(tmp_path / "gone")) == 1)
    end(keeper)


def test_a_restart_keeps_what_is_there_and_counts_it(tmp_path: Path) -> None:
    bounds = Quarantine(max_count=20)
    for start in range(5):
        keeper = Keeper(tmp_path, bounds)
        for number in range(2):
            keeper.offer(delivery(b"%d.%d" % (start, number)), "not_a_jws")
        end(keeper)
        assert len(files_in(tmp_path / "acme")) == 2 * start + 2
    assert len(set(bodies(tmp_path / "acme"))) == 10
    smaller = Shelf(tmp_path / "acme", Quarantine(max_count=4))
    smaller.look()
    assert len(files_in(tmp_path / "acme")) == 4


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    """Neither minds what the other takes away, and a look brings both into the bounds."""
    bounds = Quarantine(max_count=10)
    one, other = Shelf(tmp_path, bounds), Shelf(tmp_path, bounds)
    for number in range(30):
        (one if number % 2 else other).put(refused("not_a_jws", now_ms(), b"%d" % number))
    assert 10 <= len(files_in(tmp_path)) <= 20
    one.look()
    assert len(files_in(tmp_path)) == 10
    other.look()
    assert other.count == 10


def test_who_offers_never_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread hangs in a write; a thousand wait, and the rest is dropped."""
    hang = threading.Event()
    monkeypatch.setattr(Shelf, "put", lambda *_: hang.wait(60))
    keeper = Keeper(tmp_path, Quarantine(max_count=1_000_000))

    def flood() -> None:
        for _ in range(5000):
            keeper.offer(delivery(), "not_a_jws")

    offering = threading.Thread(target=flood)
    offering.start()
    offering.join(30)
    assert not offering.is_alive()
    assert keeper._queue.qsize() <= 1000
    hang.set()
    end(keeper)


@pytest.mark.parametrize("is_body", [True, False], ids=["bodies", "headers"])
def test_what_waits_is_bounded_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_body: bool
) -> None:
    hang = threading.Event()
    monkeypatch.setattr(Shelf, "put", lambda *_: hang.wait(60))
    keeper = Keeper(tmp_path, Quarantine(max_count=10**6, max_bytes=10**12))
    large = delivery(bytes(1024 * 1024) if is_body else b"")
    if not is_body:
        large.headers = [(b"x", bytes(1024 * 1024))]
    for _ in range(100):
        keeper.offer(large, "not_a_jws")
    assert keeper._queue.qsize() <= 16
    hang.set()
    end(keeper)
    assert keeper._put == keeper._taken


def test_a_folder_that_cannot_be_written_is_told_once_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "quarantine").write_text("no folder")
    with capture_logs() as lines:
        keeper = Keeper(tmp_path / "quarantine", Quarantine())
        for _ in range(3):
            keeper.offer(delivery(b"canary"), "not_a_jws")
        end(keeper)
    assert [(line["event"], set(line)) for line in lines] == [
        ("quarantine_failed", {"event", "log_level", "error"})
    ]


def test_where_no_thread_can_be_had_nobody_is_hurt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_many(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    keeper = Keeper(tmp_path, Quarantine())
    with monkeypatch.context() as patched, capture_logs() as lines:
        patched.setattr(threading.Thread, "start", too_many)
        keeper.offer(delivery(b"first"), "not_a_jws")
    assert [line["event"] for line in lines] == ["quarantine_failed"]
    keeper.offer(delivery(b"second"), "not_a_jws")
    end(keeper)
    assert sorted(bodies(tmp_path / "acme")) == [b"first", b"second"]


def test_a_full_disk_is_left_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.quarantine.disk_full", lambda _: True)
    shelf = Shelf(tmp_path / "acme", Quarantine())
    assert not shelf.put(refused("not_a_jws", now_ms()))
    assert files_in(tmp_path / "acme") == []


def test_who_signed_with_a_secret_of_before_is_known(tmp_path: Path) -> None:
    """Secrets were read again; the one of before is in this process' memory, and in no file."""
    keeper = Keeper(tmp_path, Quarantine())
    keeper.replaced({"acme": Webhook([SECRET.encode()], "US", 18_000)})
    keeper.offer(delivery(sign(call(1, 0))), "bad_signature")
    keeper.offer(delivery(sign(call(1, 0), OTHER_SECRET)), "bad_signature")
    keeper.offer(delivery(sign(call(1, 0)), connection="beta"), "bad_signature")
    end(keeper)
    assert sorted(
        (found.former, found.connection)
        for name in ("acme", "beta")
        for file in files_in(tmp_path / name)
        if (found := file.read())
    ) == [(False, "acme"), (False, "beta"), (True, "acme")]
    for path in tmp_path.rglob("*.json"):
        assert SECRET.encode() not in path.read_bytes()


# What else may lie there

names = st.one_of(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1),
    st.from_regex(r"\d{12,14}-[a-zA-Z_\n.]{0,50}-[0-9a-fA-F]{7,9}\.json(\n|x)?", fullmatch=True),
).filter(lambda name: name not in (".", "..") and len(os.fsencode(name)) < 200)


@given(names=st.lists(names, max_size=6), content=st.binary(max_size=300))
def test_files_with_whatever_name_and_content_do_no_harm(
    tmp_path_factory: pytest.TempPathFactory, names: Sequence[str], content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("quarantine")
    for name in names:
        (folder / name).write_bytes(content)
    shelf = Shelf(folder, Quarantine(max_count=1000, max_age_s=10**12))
    shelf.look()
    assert {path.name for path in folder.iterdir()} == set(names), "none of ours, and left alone"
    assert shelf.put(refused("not_a_jws", now_ms()))
    for file in files_in(folder):
        found = file.read()
        assert found is None or found.body == b"garbage"


@given(
    body=st.binary(max_size=500),
    headers=st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=50)), max_size=4),
    hint=st.none() | st.text(max_size=20),
    received_ms=st.integers(-(2**62), 2**62),
)
def test_every_delivery_can_be_kept_and_read(
    tmp_path_factory: pytest.TempPathFactory,
    body: bytes,
    headers: list[tuple[bytes, bytes]],
    hint: str | None,
    received_ms: int,
) -> None:
    folder = tmp_path_factory.mktemp("quarantine")
    wanted = Refused(
        connection="acme",
        via="webhook",
        hint=hint,
        reason="not_a_jws",
        received_ms=received_ms,
        headers=headers,
        body=body,
    )
    shelf = Shelf(folder, Quarantine(max_age_s=10**15))
    assert shelf.put(wanted)
    (file,) = files_in(folder)
    assert file.read() == wanted


def test_links_and_folders_are_no_files_of_ours(tmp_path: Path) -> None:
    folder = tmp_path / "acme"
    folder.mkdir()
    secret = tmp_path / "secret"
    secret.write_text("not to be read")
    (folder / "1790000000000-not_a_jws-00000000.json").symlink_to(secret)
    (folder / "1790000000000-not_a_jws-00000001.json").mkdir()
    shelf = Shelf(folder, Quarantine(max_count=1, max_age_s=1))
    shelf.look()
    assert files_in(folder) == []
    assert secret.exists()
    assert len(list(folder.iterdir())) == 2


def test_what_nobody_finished_goes_and_what_is_damaged_is_none(tmp_path: Path) -> None:
    old, young = tmp_path / "a.part", tmp_path / "b.part"
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (time.time() - 3600, time.time() - 3600))
    damaged = tmp_path / f"{now_ms():013d}-not_a_jws-00000000.json"
    damaged.write_text('{"connection":"acme","via"')
    shelf = Shelf(tmp_path, Quarantine())
    shelf.look()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["b.part", damaged.name])
    (file,) = files_in(tmp_path)
    assert file.read() is None
    with pytest.raises(FileNotFoundError):  # which is another matter
        File(tmp_path / "gone.json", 0, "empty", 0).read()


def test_taking_one_away_takes_any(tmp_path: Path) -> None:
    """What stays of a flood is a sample of it, not its end."""
    random.seed(1)
    shelf = Shelf(tmp_path, Quarantine(max_count=30))
    at_ms = now_ms() // HOUR_MS * HOUR_MS
    for number in range(600):
        shelf.put(refused("not_a_jws", at_ms, b"%03d" % number))
    found = sorted(map(int, bodies(tmp_path)))
    assert len(found) == 30
    assert found[0] < 550, "not only the last ones"
