"""`dialstream dialpad sync --rotate-secret`: a new secret that everybody knows before it is used.

What is under way can be read from the two files and from Dialpad, so that a crash at any point is
followed by running it again:

| first file | second file | Dialpad signs with | next |
|---|---|---|---|
| current | anything | current | current into the second, a new one into the first |
| new | current | current | once receivers accept the new one, set it at Dialpad |
| new | former | new | keep the former for RETRIES_S |

https://developers.dialpad.com/docs/webhook-delivery-failures : an SMS is tried for about 4 h.
"""

import asyncio
import os
import secrets as random_secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import httpx

from ingest.api import ApiError
from ingest.commands.dialpad_sync import choose
from ingest.errors import ConfigError
from ingest.eventlog.ownership import sole_owner
from ingest.eventlog.segments import sync_folder
from ingest.providers.dialpad.api import DialpadApi, open_api
from ingest.providers.dialpad.subscriptions import (
    WEBHOOKS,
    WEBSOCKETS,
    Desired,
    Endpoint,
    desired,
)
from ingest.providers.dialpad.sync import look
from ingest.service import url_of
from ingest.settings import Connection, Settings
from ingest.signing import sign_compact_jws

#: How long deliveries with the former secret may still come.
RETRIES_S = 5 * 3600

#: How long receivers may take to read their secrets again.
WAIT_S = 300.0
_LOOK_EVERY_S = 1.0

#: Behind a load balancer there may be several receivers: so many connections in a row, each new.
PUBLIC_PROBES = 12
_PROBE_S = 5.0

#: Signed, but long expired: who knows the secret says so, and keeps nothing of it.
_PROBE = b'{"exp":-1000000000000000}'

Answer = Literal["accepts", "refuses", "silent"]


class RotationError(Exception):
    """It cannot go on; ``str()`` says why and what to do."""


def rotate_secret(
    settings: Settings,
    connection: str | None,
    *,
    dry_run: bool,
    reloaded: bool,
    wait_s: float = WAIT_S,
) -> int:
    """Rotate the secret of one connection, or go on with what was begun; the exit code.

    ``reloaded``: all receivers and listeners have read the secrets again, on the user's word.
    Raises ConfigError.
    """
    chosen = choose(settings, connection)
    if len(chosen) > 1:
        raise ConfigError(f"name the connection with --connection: {', '.join(chosen)}")
    ((name, one),) = chosen.items()
    _two_files(name, one)
    desired(name, one)
    try:
        # Two at once could put a secret away that the other has just set.
        with sole_owner(settings.eventlog.path, "rotation"):
            asyncio.run(
                _Rotation(settings, name, one, wait_s).run(dry_run=dry_run, reloaded=reloaded)
            )
    except (ApiError, RotationError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    return int(dry_run)


def _two_files(name: str, connection: Connection) -> tuple[Path, Path]:
    files = tuple(Path(os.path.realpath(path)) for path in connection.secret_files)
    if connection.secrets or len(files) != 2 or files[0] == files[1]:  # noqa: PLR2004
        raise ConfigError(
            f"connections.{name}.secret_files: rotating needs two files and no `secrets`: the new "
            "secret goes into the first, the one in use into the second (to begin with, copy it)"
        )
    return files[0], files[1]


class _Rotation:
    def __init__(
        self, settings: Settings, name: str, connection: Connection, wait_s: float
    ) -> None:
        self._name = name
        self._connection = connection
        self._wait_s = wait_s
        self._first, self._second = _two_files(name, connection)
        self._local = _local_url(settings, name)
        self._public = (
            None if connection.public_url is None else f"{connection.public_url}/webhooks/{name}"
        )

    async def run(self, *, dry_run: bool, reloaded: bool) -> None:
        async with open_api(self._name, self._connection) as api:
            wanted = desired(self._name, self._connection)
            ours = await self._ours(api, wanted)
            first, second = wanted.secrets
            used = {endpoint.secret for endpoint in ours}
            if first == second or second not in used:
                if first != second:
                    self._must_be_old()
                self._say(
                    f"a new secret goes into {self._first}, the current one into {self._second}"
                )
                if dry_run:
                    return
                self._write_new(first)
                wanted = desired(self._name, self._connection)
            else:
                self._say(
                    f"a rotation is under way: Dialpad signs with the secret in {self._second}, "
                    f"and gets the one in {self._first}"
                )
                if dry_run:
                    return
            await self._known_to_all(wanted.secrets[0], reloaded=reloaded)
            await self._set(api, wanted, ours)
        until = _clock(time.time() + RETRIES_S)
        self._say(
            f"Dialpad signs with the new secret. Until {until} retries may still carry the former "
            f"one: leave {self._second} as it is; the next rotation puts it away"
        )

    async def _ours(self, api: DialpadApi, wanted: Desired) -> list[Endpoint]:
        found = await look(api)
        ours = [endpoint for endpoint in found.endpoints if wanted.owns(endpoint)]
        if not ours or any(endpoint.secret not in wanted.secrets for endpoint in ours):
            raise RotationError(
                "Dialpad has no webhook or websocket of ours, or one with a secret that is not "
                f"ours: run `dialstream dialpad sync --connection {self._name}` first"
            )
        return ours

    def _must_be_old(self) -> None:
        """The second file was last touched when Dialpad stopped using what is in it."""
        until = self._second.stat().st_mtime + RETRIES_S
        if time.time() < until:
            raise RotationError(
                f"deliveries with the secret in {self._second} may still come until "
                f"{_clock(until)}: rotate after that"
            )

    def _write_new(self, current: str) -> None:
        """At no point between is the current secret in neither file."""
        try:
            _write(self._second, current)
            _write(self._first, random_secrets.token_urlsafe(32))
        except OSError as error:
            raise RotationError(
                f"{error.filename or self._first} cannot be written ({error.strerror}): let this "
                "user write both files and their folders, then try again"
            ) from None

    async def _known_to_all(self, secret: str, *, reloaded: bool) -> None:
        """Return once everybody who answers accepts deliveries with the secret."""
        if reloaded:
            return
        until = time.monotonic() + self._wait_s
        told = False
        while True:
            answers = await self._probe(secret)
            if "accepts" in answers and "refuses" not in answers:
                if "silent" in answers:
                    self._say(
                        f"only one of {self._local} and {self._public} answers here: whatever else "
                        "receives could not be asked"
                    )
                return
            if not told:
                self._say(
                    "now send SIGHUP to every receiver and listener (kill -HUP <pid>), after both "
                    "files are on its machine; until they accept the new secret, nothing changes "
                    f"at Dialpad. Looking for {self._wait_s:.0f} s …"
                )
                told = True
            if time.monotonic() > until:
                break
            await asyncio.sleep(_LOOK_EVERY_S)
        if "refuses" in answers:
            raise RotationError(
                "a receiver does not accept the new secret yet. Nothing was changed at Dialpad, "
                "and both secrets are in the files: send SIGHUP, then run this again"
            )
        raise RotationError(
            f"no receiver answers at {' or '.join(filter(None, (self._local, self._public)))}. "
            "Nothing was changed at Dialpad, and both secrets are in the files: run this where a "
            "receiver can be reached, or send SIGHUP to all receivers and listeners, then add "
            "--reloaded"
        )

    async def _probe(self, secret: str) -> set[Answer]:
        body = sign_compact_jws(_PROBE, secret.encode())
        answers = {await _ask(self._local, body)} if self._local else set()
        for _ in range(PUBLIC_PROBES if self._public else 0):
            answers.add(await _ask(str(self._public), body))
            if answers != {"accepts"}:
                break
        return answers

    async def _set(self, api: DialpadApi, wanted: Desired, ours: Sequence[Endpoint]) -> None:
        secret = wanted.secrets[0]
        self._touch()
        for endpoint in ours:
            if endpoint.secret == secret:
                continue
            if endpoint.form == "webhook":
                body = {"hook_url": endpoint.url, "secret": secret}
                await api.patch(f"{WEBHOOKS}/{endpoint.id}", body)
            else:
                await api.patch(f"{WEBSOCKETS}/{endpoint.id}", {"secret": secret})
        self._touch()
        if any(endpoint.secret != secret for endpoint in await self._ours(api, wanted)):
            raise RotationError("Dialpad has not taken the new secret everywhere: run this again")

    def _touch(self) -> None:
        with suppress(OSError):  # then its age is that of its content, which is older
            os.utime(self._second)

    def _say(self, text: str) -> None:
        print(f"{self._name}: {text}", flush=True)


def _local_url(settings: Settings, name: str) -> str | None:
    receiver = settings.receiver
    if receiver.port == 0:
        return None
    if receiver.host in ("0.0.0.0", "::"):  # noqa: S104 - to be reached there, not to listen
        receiver = receiver.model_copy(update={"host": "127.0.0.1"})
    return f"{url_of(receiver)}/webhooks/{name}"


async def _ask(url: str, body: bytes) -> Answer:
    """What a receiver thinks of a delivery that is expired, over a connection of its own.

    ``silent``: nobody is there, or somebody who is no receiver of this connection.
    """
    try:
        async with (
            asyncio.timeout(_PROBE_S),  # httpx's own are between two pieces of an answer
            httpx.AsyncClient(timeout=_PROBE_S, trust_env=False) as client,
        ):
            answer = await client.post(
                url, content=body, headers={"content-type": "application/jwt"}
            )
        reason = (
            answer.json().get("reason") if answer.status_code == httpx.codes.UNAUTHORIZED else ""
        )
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError, AttributeError):
        return "silent"
    if answer.is_success or reason == "expired":
        return "accepts"
    return "refuses" if reason else "silent"


def _write(path: Path, secret: str) -> None:
    """Put a secret into a file: the old one or the new one is there, and nobody else reads it."""
    before = path.stat()
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(secret + "\n")
            file.flush()
            if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(descriptor, before.st_uid, before.st_gid)  # the receiver's user
            os.fsync(descriptor)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
