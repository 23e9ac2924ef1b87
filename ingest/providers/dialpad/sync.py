"""Reading what Dialpad has of webhooks, websockets and subscriptions, and taking a plan's steps.

https://developers.dialpad.com/docs/event-subscriptions
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from ingest.api import ApiError, read_json
from ingest.providers.dialpad.api import DialpadApi
from ingest.providers.dialpad.subscriptions import (
    KINDS,
    WEBHOOKS,
    WEBSOCKETS,
    Desired,
    Endpoint,
    Found,
    Plan,
    Step,
    Subscription,
    as_number,
    path_of,
    plan,
    read_endpoint,
    read_id,
    read_subscription,
)

#: What is made twice because an answer was lost, or changed by others meanwhile, is put right in
#: the next round; a Dialpad that does not keep what it is told is given up.
ROUNDS = 4


class Told(Protocol):
    """Hears how it goes."""

    def planned(self, plan: Plan) -> None:
        """These steps are taken next."""
        ...

    def taken(self, step: Step) -> None:
        """One of them is done."""
        ...


async def look(api: DialpadApi, made: Iterable[tuple[str, str]] = ()) -> Found:
    """Everything that Dialpad lists, kinds that we may not read named as hidden.

    ``made``: paths and ids of what has just been made, and may not be listed yet. Raises ApiError.
    """
    unlisted: dict[str, list[str]] = {}
    for path, ident in made:
        unlisted.setdefault(path, []).append(ident)
    webhooks = await _items(api, WEBHOOKS, unlisted)
    websockets = await _items(api, WEBSOCKETS, unlisted)
    endpoints = [
        *(read_endpoint("webhook", item) for item in webhooks),
        *(read_endpoint("websocket", item) for item in websockets),
    ]
    subscriptions: list[Subscription] = []
    hidden = set()
    for kind in KINDS:
        try:
            items = await _items(api, path_of(kind), unlisted)
        except ApiError as error:
            if error.reason not in ("forbidden", "not_found"):  # 404 may mean the same
                raise
            hidden.add(kind)
            continue
        subscriptions += [read_subscription(kind, item, endpoints) for item in items]
    return Found(endpoints, subscriptions, frozenset(hidden))


async def _items(api: DialpadApi, path: str, unlisted: dict[str, list[str]]) -> Sequence[Any]:
    """A whole list, each item once: a list that changes while it is walked may repeat some."""
    items = {}
    async for page in api.pages(path):
        for raw in page:
            item = read_json(raw, dict, f"GET {path}")
            items[read_id(item)] = item
    for ident in unlisted.get(path, ()):
        if ident not in items:
            try:
                items[ident] = await api.get(f"{path}/{ident}")
            except ApiError as error:
                if error.reason != "not_found":
                    raise
    return list(items.values())


async def synchronize(
    api: DialpadApi, desired: Desired, found: Found, told: Told, *, adopt: bool = False
) -> None:
    """Take the steps from what was found to what is desired, until there are none left.

    May be broken off anywhere and begun again. Raises ApiError; ``unexpected`` also if there is
    no end to it.
    """
    made: set[tuple[str, str]] = set()
    for _ in range(ROUNDS):
        next_plan = plan(desired, found, adopt=adopt)
        if not next_plan.todo:
            return
        told.planned(next_plan)
        made |= await take_steps(api, next_plan, told.taken)
        found = await look(api, made)
    if plan(desired, found, adopt=adopt).todo:
        raise ApiError(
            "unexpected",
            "Dialpad does not keep what it is told",
            mend="does somebody else change its subscriptions? look at them there, then try again",
        )


async def take_steps(
    api: DialpadApi, plan: Plan, taken: Callable[[Step], None]
) -> set[tuple[str, str]]:
    """Do what a plan says, in its order; paths and ids of what was made. Raises ApiError."""
    ids = dict(plan.endpoints)
    made = set()
    for step in plan.todo:
        body = dict(step.body)
        if step.is_subscription and step.address is not None:
            body["endpoint_id"] = as_number(ids[step.address])
        if step.verb == "create":
            ident = await _create(api, step, body)
            made.add((step.path, ident))
            if not step.is_subscription and step.address is not None:
                ids[step.address] = ident
            step = replace(step, id=ident)  # noqa: PLW2901 - the same step, further on
        elif step.verb == "change":
            await api.patch(f"{step.path}/{step.id}", body)
        else:
            await delete(api, f"{step.path}/{step.id}")
        taken(step)
    return made


async def delete(api: DialpadApi, path: str) -> None:
    """Whoever has deleted it: it is gone."""
    try:
        await api.delete(path)
    except ApiError as error:
        if error.reason != "not_found":
            raise


async def _create(api: DialpadApi, step: Step, body: dict[str, Any]) -> str:
    """Make something once, also if the answer is lost: then it is looked for before the next try.

    What is found is new: nothing like it was there when the plan was made.

    What comes to be only after we have looked is there twice; the next round sees that.
    """
    try:
        return read_id(await api.post(step.path, body))
    except ApiError as error:
        if not error.reached:
            raise
    for item in await _items(api, step.path, {}):
        if _is_as_asked(step, item, body):
            return read_id(item)
    return read_id(await api.post(step.path, body))


def _is_as_asked(step: Step, item: Any, body: dict[str, Any]) -> bool:
    """Whether an item is what we asked for."""
    if not step.is_subscription:
        endpoint: Endpoint = read_endpoint(
            "webhook" if step.path == WEBHOOKS else "websocket", item
        )
        return (endpoint.url, endpoint.secret) == (body.get("hook_url", ""), body["secret"])
    there = read_subscription(step.kind, item)
    asked = read_subscription(step.kind, {**body, "id": there.id})
    return (
        there.endpoint is not None
        and there.endpoint.id == str(body["endpoint_id"])
        and (there.identity, there.terms) == (asked.identity, asked.terms)
    )
