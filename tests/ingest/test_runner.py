"""A process ends when its work has, whatever is under way in a thread."""

import subprocess
import sys

import pytest

#: A thread that sleeps stands for one that looks up a name where nobody answers.
PROCESS = """
import asyncio, sys, time
from ingest.runner import Stopping, run

async def main(stopping: Stopping) -> None:
    looking = asyncio.create_task(asyncio.to_thread(time.sleep, float(sys.argv[1])))
    await asyncio.sleep(0.2)
    looking.cancel()
    print("the end")

code = run(main)
print("returned")
sys.exit(code)
"""


@pytest.mark.parametrize(("sleeps_s", "said"), [(0.0, "the end\nreturned\n"), (600, "the end\n")])
def test_a_thread_that_cannot_be_stopped_is_not_waited_for(sleeps_s: float, said: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROCESS, str(sleeps_s)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (0, said)
