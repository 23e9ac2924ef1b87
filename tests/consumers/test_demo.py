"""`dialstream up --demo`: what it shows, and that what it drops on purpose is found and mended."""

import contextlib
import re
import signal
import subprocess
from collections.abc import Iterator

from tests.conftest import MakeProduct
from tests.kit import (
    SCRIPT,
    SECRET,
    Product,
    assert_no_traceback,
    clean_environment,
)


@contextlib.contextmanager
def demo(product: Product) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [SCRIPT, "up", "--demo"],
        cwd=product.folder,
        env=clean_environment(
            PYTHONUNBUFFERED="1",
            DIALSTREAM_RECEIVER__PORT=str(product.port),
            DIALSTREAM_ADMIN__PORT=str(product.admin_port),
        ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def told_until(process: "subprocess.Popen[str]", *wanted: str) -> str:
    """What it prints until each of these patterns was in a line."""
    assert process.stdout is not None
    told, missing = "", set(wanted)
    for line in process.stdout:
        told += line
        missing -= {pattern for pattern in missing if re.search(pattern, line)}
        if not missing:
            break
    assert not missing, told
    return told


def ended(process: "subprocess.Popen[str]") -> tuple[str, dict[str, int]]:
    """What it still says after Ctrl-C, and its sums."""
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")
    begun = re.search(r"^[\d,]+ received ", rest, re.MULTILINE)
    assert begun, rest
    sums = re.findall(r"(\d[\d,]*) ([a-z]+)", rest[begun.start() :])
    return rest, {word: int(count.replace(",", "")) for count, word in sums}


def test_the_demo_shows_three_providers_and_how_a_lost_ending_is_found_and_mended(
    make_product: MakeProduct,
) -> None:
    product = make_product()
    product.config.unlink()
    with demo(product) as process:
        told = told_until(
            process,
            r"call\.ended +dev ",
            r"call\.(ringing|connected|ended) +dev_line ",
            r"call\.recorded +dev ",
            r"call\.recorded +dev_line ",
            r"call\.recorded +dev_bots ",
            r"directory\.listed +dev_bots ",
            r"verdict\.push_missing +dev  …\d{6}  ",
            r"call\.ended +dev  …\d{6}  .* → .*, mended by its record",
        )
        rest, sums = ended(process)
    for name in ("dev", "dev_line"):
        post = rf"POST http://127\.0\.0\.1:{product.port}/webhooks/{name}, and read from http://"
        assert re.search(post, told)
    assert re.search(r"Dialgood +read from http://127\.0\.0\.1:\d+\n", told)
    assert f"http://127.0.0.1:{product.admin_port}/metrics" in told
    assert "\x1b" not in told
    assert (product.data / "dev.secret").exists()
    assert sums["received"] == sum(
        sums[word] for word in ("stored", "repeat", "refused", "rejected", "unavailable")
    )
    assert sums["stored"] > 0
    assert sums["rejected"] == 0
    assert sums["read"] > 0
    # One line for the drop, the verdict and the ending, in that order, each about the same call.
    told += rest
    dropped = re.findall(r"dropped on purpose +dev  …(\d{6})  the end of .* → ", told)
    found = re.findall(
        r"verdict\.push_missing +dev  …(\d{6})  in the provider's list, found after \d+ s", told
    )
    mended = re.findall(r"call\.ended +dev  …(\d{6})  .*, mended by its record", told)
    assert (sums["dropped"], sums["found"], sums["mended"]) == (
        len(dropped),
        len(found),
        len(mended),
    )
    assert set(mended) | set(found) <= set(dropped)
    assert dropped[0] == found[0] == mended[0]
    assert told.index(f"…{found[0]}  the end of") < told.index(f"…{found[0]}  in the provider's")
    # It is true: nothing but the record tells of the end, and it is on the stream.
    endings = [
        event["via"]
        for event in product.events("call", "--type", "call.ended")
        if event["data"]["call_id"].endswith(mended[0])
    ]
    assert endings == ["backfill"]
    asked = re.search(r"^dialstream (explain) (\d+) shows", rest, re.MULTILINE)
    assert asked
    explained = product.run(*asked.groups())
    assert explained.code == 0
    assert "push_missing" in explained.stdout
    # A second one goes on with the same data directory, and judges nothing of the first one.
    with demo(product) as process:
        told = told_until(process, r"call\.recorded +dev_line ", r"verdict\.push_missing +dev  …")
        ended(process)
    assert not re.search(r"verdict\.record_missing +dev ", told)


def test_beside_other_connections_the_demo_plays_dialpad_alone(make_product: MakeProduct) -> None:
    product = make_product()
    table = {"provider": "dialpad", "secrets": [SECRET]}
    product.configure({"connections": {"dev": table, "acme": table}})
    with demo(product) as process:
        told = told_until(process, r"call\.[a-z]+ +dev ")
        rest, sums = ended(process)
    assert sums["stored"] > 0
    assert "read" not in sums
    assert "DialLink" not in told
    assert "on purpose" not in told + rest


def test_the_demo_plays_to_no_connection_that_is_meant_for_real(make_product: MakeProduct) -> None:
    ran = make_product().run("up", "--demo")
    assert ran.code == 2
    assert "dev" in ran.stderr
    assert_no_traceback(ran.stderr)
