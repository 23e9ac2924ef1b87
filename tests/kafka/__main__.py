"""``python -m tests.kafka``: a Kafka of one broker in the foreground, for people."""

import contextlib
import signal
import socket
import sys
import time

from tests.kafka.cluster import Cluster
from tests.kafka.jars import ClusterError
from tests.kit import PROJECT

_PORT = 9092

_USE = f"""\
Kafka listens on 127.0.0.1:{_PORT}; Ctrl-C ends it. In another terminal:

  . .venv/bin/activate
  export DIALSTREAM_EVENTLOG__KIND=kafka
  export DIALSTREAM_KAFKA__REPLICATION_FACTOR=1 DIALSTREAM_KAFKA__MIN_INSYNC_REPLICAS=1
  dialstream topics create
  dialstream up --demo

It has one broker, hence the 1s. What it keeps is in .kafka/; `make clean` removes that.
"""


def main() -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", _PORT))
        except OSError:
            print(f"port {_PORT} is taken: is a Kafka running already?", file=sys.stderr)
            return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Cluster(ports=[_PORT], folder=PROJECT / ".kafka") as kafka:
            print(_USE, flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                while kafka.broker().alive:
                    time.sleep(0.5)
                print(f"Kafka has ended; {kafka.broker().log} says why", file=sys.stderr)
                return 1
            # It has a session of its own, where Ctrl-C does not reach it.
            print("stopping", flush=True)
            kafka.stop_broker()
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # while it started, or for the second time
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
