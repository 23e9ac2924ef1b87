"""Commands of the product that run to their end, started quickly.

Most of the time of a short command goes into loading modules. Here one process loads them all, once
for all tests of a run, and forks for each command: the fork executes the console script as it
lies there, with arguments, folder, environment and pipes of its own, and ends as a process does.
What modules do while they are loaded is tested elsewhere.

Run as a program it is that process: it serves at the path that is its argument, while its stdin is
open.
"""

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_STARTS_IN_S = 120

_lock = threading.Lock()
_served_at: list[str] = []


def run_forked(
    command: Sequence[str],
    *,
    cwd: Path,
    stdin: bytes,
    environment: Mapping[str, str],
    timeout_s: float,
) -> subprocess.CompletedProcess[bytes]:
    """Run a script of Python's to its end. Raises subprocess.TimeoutExpired, and has killed it."""
    with _lock:
        if not _served_at:
            _served_at.append(_serve_beside(environment))
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    theirs = [in_read, out_write, err_write]
    request = {"command": list(command), "cwd": str(cwd), "environment": dict(environment)}
    with socket.socket(socket.AF_UNIX) as line, ThreadPoolExecutor(3) as threads:
        try:
            line.connect(_served_at[0])
            socket.send_fds(line, [b"."], theirs)
        finally:
            for number in theirs:
                os.close(number)
            written = threads.submit(_write, in_write, stdin)
            read = [threads.submit(_read, number) for number in (out_read, err_read)]
        line.sendall(json.dumps(request).encode() + b"\n")
        line.settimeout(timeout_s)
        with line.makefile("r") as answers:
            process = int(answers.readline())
            try:
                status = int(answers.readline())
            except TimeoutError:
                os.kill(process, signal.SIGKILL)
                raise subprocess.TimeoutExpired(command, timeout_s) from None
        written.result()
        code = os.waitstatus_to_exitcode(status)
        output, errors = (each.result() for each in read)
        return subprocess.CompletedProcess(command, code, output, errors)


def _write(number: int, data: bytes) -> None:
    try:
        with open(number, "wb") as pipe:
            pipe.write(data)
    except BrokenPipeError:  # it has not read what it was given
        pass


def _read(number: int) -> bytes:
    with open(number, "rb") as pipe:
        return pipe.read()


def _serve_beside(environment: Mapping[str, str]) -> str:
    """Start the process that serves, which ends with this one; where it does."""
    path = str(Path(tempfile.mkdtemp(prefix="dialstream-commands-"), "socket"))
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={name: text for name, text in environment.items() if name[:10] != "DIALSTREAM"},
    )
    atexit.register(process.communicate, timeout=30)
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], _STARTS_IN_S)
    assert ready, "what runs commands does not start"
    assert process.stdout.readline() == b"ready\n", "what runs commands does not start"
    return path


# The process that serves


def serve(path: str) -> None:
    """Fork for whoever connects, until stdin ends."""
    for package in ("ingest", "consumers"):
        found = importlib.import_module(package)
        for module in pkgutil.walk_packages(found.__path__, f"{package}."):
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()
    serving = 0
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            try:
                ready, _, _ = select.select([listener, sys.stdin], [], [])
            except KeyboardInterrupt:  # the tests were interrupted, too
                ready = [sys.stdin]
            if sys.stdin in ready:
                shutil.rmtree(Path(path).parent)
                return
            while serving and os.waitpid(-1, os.WNOHANG)[0]:
                serving -= 1
            line, _ = listener.accept()
            serving += 1
            if os.fork() == 0:
                listener.close()
                _serve_one(line)
                os._exit(0)
            line.close()


def _serve_one(line: socket.socket) -> None:
    _, numbers, _, _ = socket.recv_fds(line, 1, 3)
    with line.makefile("rw") as asked:
        request = json.loads(asked.readline())
        process = os.fork()
        for place, number in enumerate(numbers):
            if process == 0:
                os.dup2(number, place)
            os.close(number)
        if process == 0:
            os.chdir(request["cwd"])
            os.environ.clear()
            os.environ.update(request["environment"])
            time.tzset()
            sys.argv = request["command"]
            # Its SystemExit goes to the top, and the interpreter does all it does at an end.
            runpy.run_path(sys.argv[0], run_name="__main__")
        asked.write(f"{process}\n")
        asked.flush()
        asked.write(f"{os.waitpid(process, 0)[1]}\n")


if __name__ == "__main__":
    serve(sys.argv[1])
