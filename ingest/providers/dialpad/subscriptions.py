"""Webhooks, websockets and subscriptions at Dialpad: as they ought to be, as found, and the way.

Pure: `ingest.providers.dialpad.sync` reads and writes, this decides.

Ours is a webhook whose URL is ``<public_url>/webhooks/<connection>``, or that followed by a slash,
a websocket that carries one of our secrets, and what subscribes to these. Everything else is
somebody else's.

https://developers.dialpad.com/docs/event-subscriptions
https://developers.dialpad.com/docs/event-subscriptions-via-websocket
https://developers.dialpad.com/docs/call-events
https://developers.dialpad.com/docs/sms-events
https://developers.dialpad.com/docs/contact-events
https://developers.dialpad.com/docs/agent-status-events
https://developers.dialpad.com/docs/change-log-events
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from ingest.errors import ConfigError
from ingest.providers.dialpad.api import text_id

if TYPE_CHECKING:
    from ingest.settings import Connection

#: All that we understand; each has a list of subscriptions of its own.
KINDS = ("call", "sms", "contact", "agent_status", "changelog")

WEBHOOKS = "/api/v2/webhooks"
WEBSOCKETS = "/api/v2/websockets"

#: Where a subscription goes: a webhook's URL, or this word for our websocket.
Address = str
WEBSOCKET: Address = "websocket"

Form = Literal["webhook", "websocket"]
Verb = Literal["create", "change", "delete", "leave"]

What = Literal[
    "deleted",
    "disabled",
    "changed",
    "doubled",
    "unsigned",
    "foreign_secret",
    "surplus",
    "foreign",
    "hidden",
]
"""Why there is something to do: one of ours is missing, was switched off, has other terms, is there
twice, has no secret, has a secret that is not ours, is not wanted; it is another's, adopted; or
the key may not read the list."""

Target = tuple[str, str]
"""Type and id of the office, centre or person that a subscription is for."""

COMPANY: Target = ("", "")

Terms = Mapping[str, Any]
"""What PATCH changes of a subscription, in one spelling: what is absent has its default."""


def path_of(kind: str) -> str:
    return f"/api/v2/subscriptions/{kind}"


# As found


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A webhook or a websocket."""

    form: Form
    id: str
    #: Where a webhook posts. Empty for a websocket: its address is a secret.
    url: str
    #: Dialpad tells it in clear. None: what it sends is not signed.
    secret: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Subscription:
    kind: str
    id: str
    endpoint: Endpoint | None
    #: ``local`` or ``shared``; empty for other kinds.
    contact_type: str
    target: Target
    terms: Terms

    @property
    def identity(self) -> tuple[str, str, Target]:
        """Two of ours with the same one send every event twice."""
        return self.kind, self.contact_type, self.target


@dataclass(frozen=True, slots=True)
class Found:
    """What Dialpad lists."""

    endpoints: Sequence[Endpoint] = ()
    subscriptions: Sequence[Subscription] = ()
    #: Kinds whose list the key may not read.
    hidden: frozenset[str] = frozenset()


def read_endpoint(form: Form, item: Any) -> Endpoint:
    """An item of a list, or one embedded in a subscription. Raises ApiError if it has no id."""
    signature = item.get("signature") if isinstance(item, dict) else None
    secret = signature.get("secret") if isinstance(signature, dict) else None
    url = item.get("hook_url") if isinstance(item, dict) and form == "webhook" else None
    return Endpoint(
        form=form,
        id=read_id(item),
        url=url if isinstance(url, str) else "",
        secret=secret if isinstance(secret, str) and secret else None,
    )


def read_subscription(kind: str, item: Any, endpoints: Iterable[Endpoint] = ()) -> Subscription:
    """An item of a kind's list; ``endpoints``: those that are known more fully than it tells.

    Raises ApiError if it has no id.
    """
    ident = read_id(item)
    endpoint = None
    for form in ("webhook", "websocket"):
        if isinstance(item.get(form), dict) and item[form].get("id"):
            told = read_endpoint(form, item[form])
            same = (each for each in endpoints if (each.form, each.id) == (form, told.id))
            endpoint = next(same, told)
    return Subscription(
        kind=kind,
        id=ident,
        endpoint=endpoint,
        contact_type=str(item.get("contact_type") or "") if kind == "contact" else "",
        target=(target_type(item.get("target_type") or ""), str(item.get("target_id") or ""))
        if kind in _WITH_TARGET
        else COMPANY,
        terms=_terms_of(kind, item),
    )


def read_id(item: Any) -> str:
    """Dialpad's ids are strings; some clients have seen numbers. Raises ApiError."""
    return text_id(item.get("id") if isinstance(item, dict) else None)


def as_number(ident: str) -> int | str:
    """An id as it is sent."""
    return int(ident) if ident.isascii() and ident.isdigit() else ident


def target_type(word: str) -> str:
    """Dialpad spells them with underscores in events, without in its API."""
    return str(word).replace("_", "").lower()


def _terms_of(kind: str, item: Mapping[str, Any]) -> Terms:
    enabled = {"enabled": item.get("enabled") is not False}
    if kind == "call":
        return {
            "call_states": _states(item.get("call_states")),
            "group_calls_only": item.get("group_calls_only") is True,
            **enabled,
        }
    if kind == "sms":
        return {
            "direction": item.get("direction") or "all",
            "include_internal": item.get("include_internal") is True,
            "status": item.get("status") is True,
            **enabled,
        }
    return enabled


def _states(given: Any) -> tuple[str, ...]:
    """None at all mean every state, as ``all`` does."""
    states = {str(state) for state in given} if isinstance(given, (list, tuple)) else set()
    return ("all",) if not states or "all" in states else tuple(sorted(states))


_WITH_TARGET = ("call", "sms")


def _path_of_form(form: Form) -> str:
    return WEBHOOKS if form == "webhook" else WEBSOCKETS


# As it ought to be


@dataclass(frozen=True, slots=True)
class Wanted:
    """A subscription as it ought to be."""

    kind: str
    address: Address
    terms: Terms
    contact_type: str = ""
    target: Target = COMPANY

    @property
    def identity(self) -> tuple[str, str, Target]:
        return self.kind, self.contact_type, self.target

    @property
    def body(self) -> dict[str, Any]:
        """What POST and PATCH take, all but the endpoint. PATCH asks for some of it again."""
        body = {
            key: list(term) if isinstance(term, tuple) else term for key, term in self.terms.items()
        }
        if self.kind == "contact":
            body["contact_type"] = self.contact_type
        if self.kind == "agent_status":
            body["agent_type"] = "callcenter"
        if self.target != COMPANY:
            body["target_type"], ident = self.target
            body["target_id"] = as_number(ident)
        return body

    def __str__(self) -> str:
        return _subscription_text(self.kind, self.contact_type, self.target)


@dataclass(frozen=True, slots=True)
class Desired:
    """What a connection's settings ask for."""

    #: ``<public_url>/webhooks/<connection>``; None: no webhook is ours.
    prefix: str | None
    #: Those that we accept, the one that new endpoints get first.
    secrets: tuple[str, ...] = field(repr=False)
    subscriptions: tuple[Wanted, ...]
    #: Somebody listens, so websockets of ours stay, whether or not something subscribes to them.
    keeps_websockets: bool

    @property
    def addresses(self) -> tuple[Address, ...]:
        return tuple(dict.fromkeys(wanted.address for wanted in self.subscriptions))

    def owns(self, endpoint: Endpoint | None) -> bool:
        """Whether an endpoint is ours."""
        if endpoint is None:
            return False
        if endpoint.form == "websocket":
            return endpoint.secret in self.secrets
        if self.prefix is None:
            return False
        url, prefix = _canonical(endpoint.url), _canonical(self.prefix)
        return url == prefix or url.startswith(f"{prefix}/")

    def is_at(self, endpoint: Endpoint, address: Address) -> bool:
        """Whether an endpoint of ours is the one that ``address`` names."""
        if address == WEBSOCKET or endpoint.form == "websocket":
            return address == endpoint.form
        return _canonical(endpoint.url) == _canonical(address)


def syncs(connection: "Connection") -> bool:
    """Whether the settings ask for subscriptions, and there is what is needed to make them."""
    return (
        connection.provider == "dialpad"
        and connection.has_key
        and connection.has_secrets
        and (connection.public_url is not None or connection.subscriptions.transport == "websocket")
    )


def desired(name: str, connection: "Connection") -> Desired:
    """What the settings of a connection ask for. Raises ConfigError where they cannot be met."""
    faults = []
    secrets: list[str] = []
    try:
        secrets = [secret.decode() for secret in connection.signing_secrets()]
    except UnicodeDecodeError:
        faults.append("secrets: one is not in UTF-8: Dialpad takes text")
    except ConfigError as error:
        faults += error.faults
    wanted = connection.subscriptions
    prefix = None
    if connection.public_url is not None:
        prefix = f"{connection.public_url}/webhooks/{name}"
    elif wanted.transport == "webhook":
        faults.append("public_url: there is none: set it to where Dialpad reaches the receiver")
    if bool(wanted.target_type) != bool(wanted.target_id):
        faults.append("subscriptions: set both target_type and target_id, or none of them")
    if faults:
        raise ConfigError(*(f"connections.{name}.{fault}" for fault in faults))
    target = (target_type(wanted.target_type), wanted.target_id)
    subscriptions = tuple(
        Wanted(
            kind,
            WEBSOCKET if wanted.transport == "websocket" else f"{prefix}/{kind}",
            _wanted_terms(kind, wanted.call_states, wanted.sms_direction),
            contact_type,
            target if kind in _WITH_TARGET else COMPANY,
        )
        for kind in dict.fromkeys(wanted.kinds)
        for contact_type in dict.fromkeys(wanted.contact_types if kind == "contact" else ("",))
    )
    return Desired(
        prefix=prefix,
        secrets=tuple(secrets),
        subscriptions=subscriptions,
        keeps_websockets=connection.stream.enabled or wanted.transport == "websocket",
    )


def _wanted_terms(kind: str, states: Sequence[str], direction: str) -> Terms:
    every = {"include_internal": True, "status": True}  # both are off by default
    return _terms_of(kind, {"call_states": states, "direction": direction, **every})


def _canonical(url: str) -> str:
    """Scheme and host in small letters: they mean the same."""
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme.lower()}{separator}{host.lower()}{slash}{path}"


# The way


@dataclass(frozen=True, slots=True)
class Reason:
    what: What
    text: str


@dataclass(frozen=True, slots=True)
class Step:
    """One request to Dialpad; or none, if everything is as it should be."""

    verb: Verb
    #: Of subscriptions and of a webhook for one: its kind. Else ``webhook`` or ``websocket``.
    kind: str
    #: For people: no secret, nobody's address but ours.
    text: str
    path: str
    #: None until it is created.
    id: str | None = None
    #: Holds a secret where an endpoint is made or mended.
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: Where a subscription goes, or what an endpoint is for.
    address: Address | None = None
    reasons: tuple[Reason, ...] = ()

    @property
    def is_subscription(self) -> bool:
        return self.path not in (WEBHOOKS, WEBSOCKETS)


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in an order in which nothing is lost: made and mended first, deleted last."""

    steps: tuple[Step, ...]
    #: Endpoints that are there already: address → id.
    endpoints: Mapping[Address, str]
    #: Wanted kinds that the key may not read: nothing is done about them.
    hidden: tuple[str, ...]

    @property
    def todo(self) -> list[Step]:
        return [step for step in self.steps if step.verb != "leave"]


def plan(desired: Desired, found: Found, *, adopt: bool = False) -> Plan:
    """How to come from what is found to what is desired.

    A kind that the key may not read is left alone, and no endpoint is deleted then. ``adopt``:
    subscriptions of others that are for the same as one of ours are treated as ours.

    What is kept of several does not depend on the order in which they were listed.
    """
    hidden = tuple(
        dict.fromkeys(
            wanted.kind for wanted in desired.subscriptions if wanted.kind in found.hidden
        )
    )
    ours = [endpoint for endpoint in found.endpoints if desired.owns(endpoint)]
    kept = _kept_endpoints(desired, found, ours)
    visible = [wanted for wanted in desired.subscriptions if wanted.kind not in hidden]
    making = [
        _endpoint_step(desired, address, kept.get(address), ours)
        for address in dict.fromkeys(wanted.address for wanted in visible)
    ]
    subscribing: list[Step] = []
    unsubscribing: list[Step] = []
    left = [each for each in found.subscriptions if each.kind not in hidden]
    for wanted in visible:
        same = [each for each in left if each.identity == wanted.identity]
        same = [each for each in same if adopt or desired.owns(each.endpoint)]
        chosen = _best(desired, wanted, same, kept.get(wanted.address))
        subscribing.append(_subscription_step(desired, wanted, chosen, kept.get(wanted.address)))
        for each in same:
            left.remove(each)
            if each is not chosen:
                why = Reason("doubled", f"the same as {chosen.id}" if chosen else "")
                unsubscribing.append(_deletion(each, why))
    unsubscribing += [
        _deletion(each, Reason("surplus", "the settings do not ask for it"))
        for each in left
        if desired.owns(each.endpoint)
    ]
    removing = [] if hidden else [*_endpoints_to_delete(desired, kept, ours)]
    return Plan(
        steps=(*making, *subscribing, *unsubscribing, *removing),
        endpoints={address: endpoint.id for address, endpoint in kept.items()},
        hidden=hidden,
    )


def _kept_endpoints(
    desired: Desired, found: Found, ours: Sequence[Endpoint]
) -> dict[Address, Endpoint]:
    """Of several endpoints for one address the one that stays.

    Of webhooks it is signed by us if one is, then most subscribed to, then the first made.
    """

    def worth(endpoint: Endpoint) -> tuple[bool, int, tuple[int, str]]:
        users = sum(_is_same(endpoint, each.endpoint) for each in found.subscriptions)
        return endpoint.secret not in desired.secrets, -users, _age(endpoint.id)

    kept = {}
    for address in desired.addresses:
        if address == WEBSOCKET:
            stays = our_websocket(ours, desired.secrets)
        else:
            there = [endpoint for endpoint in ours if desired.is_at(endpoint, address)]
            stays = min(there, key=worth, default=None)
        if stays is not None:
            kept[address] = stays
    return kept


def our_websocket(endpoints: Iterable[Endpoint], secrets: Sequence[str]) -> Endpoint | None:
    """The websocket that is ours.

    Of several it is where one listens: that with the first of the secrets, then the first made.
    """

    def worth(endpoint: Endpoint) -> tuple[int, tuple[int, str]]:
        return secrets.index(str(endpoint.secret)), _age(endpoint.id)

    ours = [each for each in endpoints if each.form == "websocket" and each.secret in secrets]
    return min(ours, key=worth, default=None)


def _is_same(one: Endpoint, other: Endpoint | None) -> bool:
    return other is not None and (one.form, one.id) == (other.form, other.id)


def _age(ident: str) -> tuple[int, str]:
    """Ids rise; as texts they do not."""
    return len(ident), ident


def _endpoint_step(
    desired: Desired, address: Address, there: Endpoint | None, ours: Sequence[Endpoint]
) -> Step:
    """What has to be done so that there is an endpoint for an address."""
    form: Form = "websocket" if address == WEBSOCKET else "webhook"
    used = {endpoint.secret for endpoint in ours}
    # While secrets are rotated, all of ours sign with one that receivers know already.
    secret = next((each for each in desired.secrets if each in used), desired.secrets[0])
    body = {"secret": secret} if form == "websocket" else {"hook_url": address, "secret": secret}
    step = Step(
        "leave",
        form if form == "websocket" else _kind_at(desired, address),
        form if form == "websocket" else f"webhook {address}",
        _path_of_form(form),
        address=address,
    )
    if there is None:
        return replace(step, verb="create", body=body, reasons=(Reason("deleted", "missing"),))
    step = replace(step, id=there.id)
    if there.secret in desired.secrets:
        return step
    reason = (
        Reason("unsigned", "without a secret → with ours")
        if there.secret is None
        else Reason("foreign_secret", "with a secret that is not ours → with ours")
    )
    return replace(step, verb="change", body=body, reasons=(reason,))


def _kind_at(desired: Desired, address: Address) -> str:
    return next(each.kind for each in desired.subscriptions if each.address == address)


def _best(
    desired: Desired, wanted: Wanted, same: Sequence[Subscription], endpoint: Endpoint | None
) -> Subscription | None:
    """Of several subscriptions to the same the one that stays: ours, nearest, first made."""

    def worth(each: Subscription) -> tuple[bool, int, tuple[int, str]]:
        changes = len(_differences(desired, wanted, each, endpoint))
        return not desired.owns(each.endpoint), changes, _age(each.id)

    return min(same, key=worth, default=None)


def _subscription_step(
    desired: Desired, wanted: Wanted, there: Subscription | None, endpoint: Endpoint | None
) -> Step:
    step = Step("leave", wanted.kind, str(wanted), path_of(wanted.kind), address=wanted.address)
    if there is None:
        reason = Reason("deleted", "missing")
        return replace(step, verb="create", body=wanted.body, reasons=(reason,))
    step = replace(step, id=there.id)
    reasons = _differences(desired, wanted, there, endpoint)
    if not reasons:
        return step
    return replace(step, verb="change", body=wanted.body, reasons=reasons)


def _differences(
    desired: Desired, wanted: Wanted, there: Subscription, endpoint: Endpoint | None
) -> tuple[Reason, ...]:
    reasons = []
    if endpoint is None or not _is_same(endpoint, there.endpoint):
        before = _endpoint_text(desired, there.endpoint)
        to = "our websocket" if wanted.address == WEBSOCKET else f"webhook {wanted.address}"
        what: What = "changed" if desired.owns(there.endpoint) else "foreign"
        reasons.append(Reason(what, f"{before} → {to}"))
    for key, term in wanted.terms.items():
        if there.terms[key] != term:
            what = "disabled" if key == "enabled" else "changed"
            reasons.append(
                Reason(what, f"{key} {_term_text(there.terms[key])} → {_term_text(term)}")
            )
    return tuple(reasons)


def _deletion(there: Subscription, reason: Reason) -> Step:
    text = _subscription_text(there.kind, there.contact_type, there.target)
    return Step("delete", there.kind, text, path_of(there.kind), there.id, reasons=(reason,))


def _endpoints_to_delete(
    desired: Desired, kept: Mapping[Address, Endpoint], ours: Sequence[Endpoint]
) -> Iterator[Step]:
    for endpoint in ours:
        double = next((each for at, each in kept.items() if desired.is_at(endpoint, at)), None)
        if endpoint is double:
            continue
        if endpoint.form == "websocket" and double is None and desired.keeps_websockets:
            continue
        reason = Reason("surplus", "the settings do not ask for it")
        if double is not None:
            reason = Reason("doubled", f"the same as {double.id}")
        yield Step(
            "delete",
            endpoint.form,
            _endpoint_text(desired, endpoint),
            _path_of_form(endpoint.form),
            endpoint.id,
            reasons=(reason,),
        )


# Words for people


def _subscription_text(kind: str, contact_type: str, target: Target) -> str:
    what = f"{contact_type} {kind}" if contact_type else kind
    whom = "" if target == COMPANY else f" for {target[0]} {target[1]}"
    return f"subscription to {what}{whom}"


def _endpoint_text(desired: Desired, endpoint: Endpoint | None) -> str:
    """Of addresses that are not ours, no more than the host: they may hold tokens."""
    if endpoint is None:
        return "an endpoint that is gone"
    if endpoint.form == "websocket":
        return "websocket" if desired.owns(endpoint) else "another's websocket"
    url = _canonical(endpoint.url)
    if desired.prefix is not None and desired.owns(endpoint):
        known = {_canonical(f"{desired.prefix}{end}") for end in _KNOWN_ENDS}
        return f"webhook {url if url in known else f'{desired.prefix}/…'}"
    try:
        host = urlsplit(endpoint.url).hostname
    except ValueError:  # nobody has to have checked what others have set
        host = None
    return f"webhook at {host or 'no host'}"


_KNOWN_ENDS = ("", "/", *(f"/{kind}" for kind in KINDS))


def _term_text(term: Any) -> str:
    if isinstance(term, bool):
        return "on" if term else "off"
    return "+".join(term) if isinstance(term, tuple) else str(term)


# Drift


Drift = tuple[str, What]
"""A kind, or ``webhook`` or ``websocket``, and what is wrong with it."""


def drift(plan: Plan) -> Counter[Drift]:
    """How Dialpad differs from what the settings ask for, in few words with their counts."""
    found = Counter((step.kind, reason.what) for step in plan.todo for reason in step.reasons)
    found.update((kind, "hidden") for kind in plan.hidden)
    return found
