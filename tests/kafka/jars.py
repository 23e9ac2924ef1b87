"""Kafka's jars, fetched once into a cache. As a program: fetch them now, or say what is missing."""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_POM = Path(__file__).with_name("pom.xml")

#: Holds the digest of the pom that the jars beside it are of.
_MARKER = ".complete"


class ClusterError(Exception):
    """A Kafka of the tests' own cannot be had, or does not do what it should."""


def fetch_jars() -> Path:
    """The folder with the jars; fetched first, if need be. Several processes may ask at once."""
    pom = _POM.read_bytes()
    found = re.search(rb"<kafka\.version>([\w.]+)<", pom)
    assert found, "pom.xml names no version"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dialstream"
    folder = cache / f"kafka-{found[1].decode()}"
    digest = hashlib.sha256(pom).hexdigest()
    if _complete(folder, digest):
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "kafka.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _complete(folder, digest):
            print("fetching Kafka's jars, once", file=sys.stderr, flush=True)
            _fetch(cache, folder, digest)
    return folder


def _complete(folder: Path, digest: str) -> bool:
    try:
        return (folder / _MARKER).read_text() == digest
    except OSError:
        return False


def _fetch(cache: Path, folder: Path, digest: str) -> None:
    tool("mvn", "maven")
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetching-") as unfinished:
        jars = Path(unfinished) / "jars"
        command = ["mvn", "-q", "-B", "-f", str(_POM), "dependency:copy-dependencies"]
        done = subprocess.run(
            [*command, f"-DoutputDirectory={jars}"],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise ClusterError(f"mvn could not fetch Kafka's jars\n{done.stdout[-2000:]}")
        (jars / _MARKER).write_text(digest)
        shutil.rmtree(folder, ignore_errors=True)
        jars.rename(folder)


def tool(name: str, package: str) -> str:
    """The path of a program. Raises ClusterError, which says what to install."""
    path = shutil.which(name)
    if path is None:
        raise ClusterError(f"{name} is not there: `make deps`, or install {package}")
    return path


if __name__ == "__main__":
    try:
        tool("java", "openjdk-17-jre-headless")
        fetch_jars()
    except ClusterError as error:
        sys.exit(str(error))
