"""Carrying commands out, so that each has its effect, and no lead is made twice.

DialedIn knows no idempotency. A number that is put on its list twice is on it, and fields that are
set twice are set; so these are sent until there is a yes. A lead is another matter: it may ring a
person. Before one is made it is looked for by our id, and that it is about to be made is on the
disk; where the answer is lost, nobody makes it before it was looked for again, a while later. Nor
does anybody who cannot know which answers were lost: a machine that takes over from another one.
Nobody is rung whose opt-out DialedIn has not taken yet.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol, TypeAlias

import structlog

from consumers.sinks.dialedin.ledger import Entry
from consumers.sinks.dialedin.rules import Command, Dnc, Lead, Update, opt_out_pending
from consumers.subscribe import NotNowError
from ingest.api import ApiError
from ingest.logs import Sample
from ingest.providers.dialedin.api import Done, FailedError, SearchField

log = structlog.get_logger()

#: ``found``: the lead was there; ``no_lead``: there is none to be updated; ``repeat``: it was done.
Outcome: TypeAlias = Literal["ok", "duplicate", "found", "no_lead", "repeat"]

#: From one failure of DialedIn's to the next try, in seconds; doubled each time.
_FIRST_PAUSE_S, _LAST_PAUSE_S = 1.0, 60.0

#: A disk that takes nothing is tried again so much later.
DISK_PAUSE_S = 10.0


class Api(Protocol):
    """`ingest.providers.dialedin.api.DialedInApi`."""

    async def insert_dnc(self, number: str) -> Done: ...

    async def update_lead(self, number: str, fields: Mapping[str, str]) -> Done: ...

    async def lead_exists(self, by: SearchField, value: str) -> bool: ...

    async def inject_lead(
        self,
        *,
        campaign: str,
        number: str,
        client_id: str,
        fields: Mapping[str, str],
        dial: bool,
    ) -> Done: ...


class Ledger(Protocol):
    """`consumers.sinks.dialedin.ledger.Ledger`."""

    async def entries(self, keys: Sequence[str]) -> Mapping[str, Entry]: ...

    async def begin(self, key: str, action: str, at_ms: int) -> None: ...

    async def forget(self, key: str) -> None: ...

    async def end(self, key: str, action: str, at_ms: int, outcome: str) -> None: ...


class KeyRefusedError(Exception):
    """The token, or the account: nothing can be done before somebody has mended it."""

    def __init__(self, what: str, said: str = "") -> None:
        """``said``: DialedIn's words, masked."""
        super().__init__(what)
        self.said = said


class Executor:
    """Tells one account. What it is given for one key comes one after the other."""

    def __init__(
        self,
        name: str,
        api: Api,
        ledger: Ledger,
        *,
        campaign: str,
        look_after_s: float,
        sure_from_ms: int = 0,
        clock_ms: Callable[[], int],
    ) -> None:
        """``look_after_s``: see `Assumptions`; ``clock_ms``: milliseconds since 1970.

        ``sure_from_ms``: until then a lead that the ledger does not know may have been begun
        elsewhere; by the same clock, and ``look_after_s`` from now at most.
        """
        self._name = name
        self._api = api
        self._ledger = ledger
        self._campaign = campaign
        self._look_after_ms = round(look_after_s * 1000)
        self._sure_from_ms = sure_from_ms
        self._clock_ms = clock_ms
        self._failures = 0
        self._sample = Sample()

    async def carry_out(self, command: Command) -> Outcome:
        """Return once DialedIn has done it, and that is remembered; then it is never done again.

        Raises NotNowError if it has to wait, KeyRefusedError, LedgerError, and FailedError if
        DialedIn says no.
        """
        known = await self._ledger.entries(_keys(command))
        if any(entry.outcome is not None for entry in known.values()):
            return "repeat"
        try:
            if isinstance(command, Dnc):
                outcome: Outcome = await self._opt_out(command)
            elif isinstance(command, Update):
                outcome = await self._update(command)
            else:
                outcome = await self._inject(command, known)
        except ApiError as error:
            if error.reason in ("unauthorized", "forbidden"):
                raise KeyRefusedError(str(error), error.said) from None
            raise self._not_now(error) from None
        self._failures = 0
        await self._ledger.end(command.key, command.action, self._clock_ms(), outcome)
        return outcome

    async def _opt_out(self, command: Dnc) -> Outcome:
        # Until it is on DialedIn's list, nobody but we would keep a lead of it from ringing.
        guard = opt_out_pending(command.number)
        await self._ledger.begin(guard, command.action, self._clock_ms())
        outcome = await self._api.insert_dnc(command.number)
        await self._ledger.forget(guard)
        return outcome

    async def _update(self, command: Update) -> Outcome:
        # How it says that there is no such lead is not known.
        if not await self._api.lead_exists("Phone", command.number):
            return "no_lead"
        return await self._api.update_lead(command.number, command.fields)

    async def _inject(self, command: Lead, known: Mapping[str, Entry]) -> Outcome:
        sure_from_ms = (entry.begun_ms + self._look_after_ms for entry in known.values())
        wait_ms = max(sure_from_ms, default=self._sure_from_ms) - self._clock_ms()
        if 0 < wait_ms <= self._look_after_ms:
            raise NotNowError(wait_ms / 1000)
        for client_id in (command.client_id, *(ident for _, ident in command.former)):
            if await self._api.lead_exists("ClientId", client_id):
                return "found"
        await self._ledger.begin(command.key, command.action, self._clock_ms())
        try:
            return await self._api.inject_lead(
                campaign=self._campaign,
                number=command.number,
                client_id=command.client_id,
                fields=command.fields,
                dial=command.dial and not await self._has_opted_out(command.number),
            )
        except FailedError:
            # It has answered: what there is to be found is there already.
            await self._ledger.forget(command.key)
            raise

    async def _has_opted_out(self, number: str) -> bool:
        """Whether DialedIn does not know of it yet."""
        return bool(await self._ledger.entries([opt_out_pending(number)]))

    def _not_now(self, error: ApiError) -> NotNowError:
        self._failures += 1
        pause_s = min(_FIRST_PAUSE_S * 2.0 ** min(self._failures - 1, 30), _LAST_PAUSE_S)
        pause_s = max(pause_s, error.retry_after_s or 0.0)
        suppressed = self._sample.take(self._clock_ms() / 1000)
        if suppressed is not None:
            log.warning(
                "sink_waits",
                connection=self._name,
                reason=error.reason,
                said=error.said,
                retry_in_s=pause_s,
                suppressed=suppressed,
            )
        return NotNowError(pause_s)


def _keys(command: Command) -> list[str]:
    if isinstance(command, Lead):
        return [command.key, *(key for key, _ in command.former)]
    return [command.key]
