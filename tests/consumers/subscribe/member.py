"""A member of a group as a process, which keeps a diary; lines of several stand as they happened.

python member.py SETTINGS.json DIARY NAME PAUSE_S

NAME begins LEG NTH
NAME ends LEG NTH
NAME leaves LEG NTH     it was cancelled
"""

import asyncio
import json
import os
import random
import sys
from pathlib import Path

from consumers.subscribe import Subscriber
from ingest.settings import Settings
from schemas.call import Call


def main(settings: Settings, diary: int, name: str, pause_s: float) -> None:
    subscriber = Subscriber(group="crm", settings=settings)

    def write(*words: object) -> None:
        os.write(diary, f"{' '.join(map(str, (name, *words)))}\n".encode())

    @subscriber.on(Call)
    async def handle(call: Call) -> None:
        what = call.call_id, call.custom_data
        write("begins", *what)
        try:
            await asyncio.sleep(random.random() * 2 * pause_s)
        except asyncio.CancelledError:
            write("leaves", *what)
            raise
        write("ends", *what)

    subscriber.run_forever()


if __name__ == "__main__":
    given = Settings.model_validate(json.loads(Path(sys.argv[1]).read_text()))
    opened = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    main(given, opened, sys.argv[3], float(sys.argv[4]))
