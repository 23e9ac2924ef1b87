"""Has the websocket send for some seconds: ``python -m tests.bench.frames``.

The simulated Dialpad sends, and this counts what has become of it. It ends once everything is
durable: there are no answers on a websocket, so the listener's own metrics tell.
"""

import json
import sys
import time
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from prometheus_client.parser import text_string_to_metric_families

_LOOK_S = 0.05
_DURABLE_S = 30.0


def stored(metrics_url: str) -> int:
    """How many deliveries are durable, from the listener's start."""
    with urlopen(metrics_url) as answer:
        text = answer.read().decode()
    return round(
        sum(
            sample.value
            for family in text_string_to_metric_families(text)
            if family.name == "dialstream_deliveries"
            for sample in family.samples
            if sample.labels["outcome"] == "stored"
        )
    )


def main(dialpad_url: str, metrics_url: str, **what: str) -> None:
    before = stored(metrics_url)
    order = Request(f"{dialpad_url}/bench/send?{urlencode(what)}", method="POST")
    with urlopen(order) as answer:
        result = json.load(answer)
    read_at = time.monotonic()
    while (found := stored(metrics_url) - before) != result["sent"]:
        if time.monotonic() - read_at > _DURABLE_S:
            sys.exit(f"{result['sent']} frames were sent, but {found} are stored")
        time.sleep(_LOOK_S)
    figures = {
        "answered": found,
        "refused": 0,
        "broken": 0,
        "elapsed_s": result["elapsed_s"] + time.monotonic() - read_at,
        "p50_ms": 0.0,
        "p99_ms": 0.0,
    }
    print("RESULT", json.dumps(figures))


if __name__ == "__main__":
    dialpad, metrics, path, offset, count, seconds = sys.argv[1:]
    main(dialpad, metrics, path=path, offset=offset, count=count, seconds=seconds)
