"""Settings: one TOML file, the environment above it, all faults at once.

Read by hand rather than by a settings library: those stop at the first variable that does not
parse, pass over a misspelt section in the environment, and cannot say which variable was wrong.
"""

import difflib
import json
import os
import re
import secrets
import ssl
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args, get_origin
from zoneinfo import ZoneInfo

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from ingest.errors import ConfigError

if TYPE_CHECKING:
    from ingest.delivery import Provider

PREFIX = "DIALSTREAM_"
DEFAULT_FILE = Path("dialstream.toml")
DEFAULT_CONNECTION = "dev"

#: What storing in the spool and answering may take, once Kafka has had its time.
SPOOL_S = 1.0

_NAME = re.compile(r"(?=.{1,32}\Z)[a-z][a-z0-9]*(_[a-z0-9]+)*\Z")

Port = Annotated[int, Field(ge=0, le=65535)]
Bytes = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Receiver(Section):
    """The public port."""

    host: str = "127.0.0.1"
    port: Port = 8080
    max_body_bytes: Bytes = 1024 * 1024
    #: From the first byte of the request to the last of its body.
    body_timeout_s: Seconds = 3.0
    #: Dialpad hangs up after 5 s.
    answer_within_s: Seconds = 4.0


class Admin(Section):
    """Health and metrics; never public."""

    host: str = "127.0.0.1"
    port: Port = 9090


class EventLog(Section):
    kind: Literal["journal", "kafka"] = "journal"
    #: Journal, spool, and what else is kept between starts.
    path: Path = Path("data")
    #: What may wait on disk while Kafka is away.
    spool_max_bytes: Bytes = 10 * 1024**3
    journal_max_bytes: Bytes = 10 * 1024**3
    #: Deliveries that are remembered to tell repeats.
    repeat_max: Annotated[int, Field(ge=0)] = 100_000


class Kafka(Section):
    """The cluster, where the event log is Kafka."""

    #: Comma-separated.
    bootstrap_servers: str = "127.0.0.1:9092"
    topic_prefix: Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]*$", max_length=200)] = "telephony."
    partitions: Annotated[int, Field(ge=1, le=10_000)] = 12
    replication_factor: Annotated[int, Field(ge=1, le=100)] = 3
    min_insync_replicas: Annotated[int, Field(ge=1, le=100)] = 2
    #: After that an event goes to the spool.
    publish_timeout_s: Annotated[float, Field(gt=0, le=3)] = 2.0
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    sasl_username: str = ""
    sasl_password: SecretStr | None = None
    sasl_password_file: Path | None = None
    #: The authorities to trust; without, the system's.
    ssl_cafile: Path | None = None
    #: Our own certificate, where the cluster asks for one.
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None

    @property
    def servers(self) -> list[str]:
        return [server.strip() for server in self.bootstrap_servers.split(",")]

    @property
    def with_ssl(self) -> bool:
        return self.security_protocol in ("SSL", "SASL_SSL")

    @property
    def with_sasl(self) -> bool:
        return self.security_protocol in ("SASL_PLAINTEXT", "SASL_SSL")

    def password(self) -> str:
        """The SASL password; its file is read anew. Raises ConfigError."""
        if self.sasl_password is not None:
            return self.sasl_password.get_secret_value()
        if self.sasl_password_file is None:
            raise ConfigError("sasl_password: there is none: set it, or sasl_password_file")
        try:
            return read_secret(self.sasl_password_file).decode()
        except OSError as error:
            raise ConfigError(
                f"sasl_password_file: {self.sasl_password_file} cannot be read ({error.strerror})"
            ) from None
        except UnicodeDecodeError:
            raise ConfigError(
                f"sasl_password_file: {self.sasl_password_file} is not in UTF-8"
            ) from None

    def ssl_context(self) -> ssl.SSLContext:
        """What TLS needs; certificates are read anew. Raises ConfigError."""
        try:
            context = ssl.create_default_context(cafile=self.ssl_cafile)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(_unreadable("ssl_cafile", self.ssl_cafile, error)) from None
        if self.ssl_certfile is not None:
            try:
                context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile)
            except OSError as error:
                raise ConfigError(_unreadable("ssl_certfile", self.ssl_certfile, error)) from None
        return context

    def faults(self) -> list[str]:
        """What is wrong with these settings together, a line each."""
        faults = []
        for server in self.servers:
            host, _, port = server.rpartition(":")
            if not host or not port.isdigit():
                faults.append(f"bootstrap_servers: {server!r} is not host:port")
        if self.min_insync_replicas > self.replication_factor:
            faults.append(
                f"min_insync_replicas: {self.min_insync_replicas} replicas cannot be in sync where "
                f"replication_factor is {self.replication_factor}"
            )
        checks: list[Callable[[], object]] = []
        if self.with_sasl:
            checks.append(self.password)
            if not self.sasl_username:
                faults.append(f"sasl_username: {self.security_protocol} needs one")
        if self.with_ssl:
            checks.append(self.ssl_context)
        for check in checks:
            try:
                check()
            except ConfigError as error:
                faults += error.faults
        return faults


class Quarantine(Section):
    """Deliveries that did not verify; the bounds are for each connection."""

    max_count: Annotated[int, Field(gt=0)] = 10_000
    max_bytes: Bytes = 100 * 1024**2
    max_age_s: Seconds = 604_800.0


class Logging(Section):
    format: Literal["auto", "json", "console"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Stream(Section):
    """The provider's websocket."""

    enabled: bool = False
    #: A new URL and a new socket after so long; Dialpad cuts a connection after 3600 s.
    refresh_s: Annotated[float, Field(gt=0, lt=3600)] = 3000.0


class Poll(Section):
    """Reading the provider's own records."""

    #: None: where there is an API key.
    enabled: bool | None = None
    #: The near pass, over `overlap_s`.
    every_s: Seconds = 300.0
    overlap_s: Seconds = 7200.0
    #: The deep sweep, over `sweep_overlap_s`, for late changes.
    sweep_every_s: Seconds = 21_600.0
    sweep_overlap_s: Seconds = 111_600.0
    #: Records younger than this may not be listed yet.
    lag_s: Annotated[float, Field(ge=0)] = 300.0
    requests_per_s: Annotated[float, Field(gt=0, le=20)] = 5.0
    also: tuple[
        Literal[
            "transcripts",
            "recaps",
            "contacts",
            "consents",
            "directory",
            "duty_status",
            "recordings",
            "versions",
        ],
        ...,
    ] = ()
    #: How far back the very first pass reads.
    first_read_s: Seconds = 86_400.0


#: Provider → its own defaults of `Poll`.
_POLL_DEFAULTS: Mapping[str, Mapping[str, object]] = {
    "diallink": {
        "overlap_s": 600.0,
        "requests_per_s": 1.0,
        "also": ("contacts", "directory", "recordings"),
    },
    "dialgood": {"requests_per_s": 1.0, "also": ("directory", "versions")},
    "dialedin": {"enabled": False},  # it has no lists
}

#: A-DI-7: where its maker sits.
_DIALEDIN_ZONE = "America/New_York"


class Subscriptions(Section):
    """What the provider shall send, and how."""

    transport: Literal["webhook", "websocket"] = "webhook"
    kinds: tuple[Literal["call", "sms", "contact", "agent_status", "changelog"], ...] = (
        "call",
        "sms",
        "contact",
        "agent_status",
        "changelog",
    )
    #: Empty: all.
    call_states: tuple[str, ...] = ()
    sms_direction: Literal["all", "inbound", "outbound"] = "all"
    contact_types: tuple[Literal["shared", "local"], ...] = ("shared", "local")
    #: Empty: the whole company.
    target_type: str = ""
    target_id: str = ""


class Sink(Section):
    """What we tell the provider of what others tell us; everything is off unless it is set."""

    #: An inbound text that says STOP puts its number on the provider's do-not-call list,
    dnc_on_stop: bool = False
    #: and so does a consent that was taken back.
    dnc_on_consent: bool = False
    requests_per_s: Annotated[float, Field(gt=0, le=20)] = 2.0
    #: A conversation that is complete and was missed becomes a lead of `lead_campaign`.
    lead_on_missed: bool = False
    lead_campaign: Annotated[str, Field(max_length=50)] = ""
    #: Such a lead is called at once: a real person's phone rings.
    lead_dial: bool = False
    #: The leads with the numbers of a contact that has changed get its names.
    update_on_contact: bool = False

    @property
    def rules(self) -> tuple[str, ...]:
        """The names of those that are on."""
        return tuple(name for name in SINK_RULES if getattr(self, name))


#: Rule → what its consumer group is for. Opt-outs wait for no lead, leads for no contacts.
SINK_RULES: Mapping[str, str] = {
    "dnc_on_stop": "dnc",
    "dnc_on_consent": "dnc",
    "lead_on_missed": "leads",
    "update_on_contact": "updates",
}


def sink_groups(connection: str, sink: Sink) -> dict[str, list[str]]:
    """The consumer groups that tell a connection something, each with its rules."""
    found: dict[str, list[str]] = {}
    for rule in sink.rules:
        found.setdefault(f"sink-{connection}-{SINK_RULES[rule]}", []).append(rule)
    return found


PrivacyClass = Literal["content", "raw"]


class Privacy(Section):
    """What is not written to the event log."""

    #: ``content``: what was said or written; ``raw``: the provider's own object, which holds all.
    drop: frozenset[PrivacyClass] = frozenset()

    @model_validator(mode="after")
    def _nothing_is_left_in_raw(self) -> Self:
        if self.drop == {"content"}:
            raise ValueError('drop: raw holds the content too: write ["content", "raw"]')
        return self


class Connection(Section):
    """One account at a provider."""

    provider: str
    secrets: tuple[SecretStr, ...] = ()
    secret_files: tuple[Path, ...] = ()
    #: For reading back, subscriptions, and the websocket's address.
    api_key: SecretStr | None = None
    api_key_file: Path | None = None
    #: Scheme and host of the API; None: the provider's own.
    base_url: Annotated[str, Field(pattern=r"^https?://[^/?#@]+$")] | None = None
    #: Scheme and host, and a path if there is one, where the provider reaches us.
    public_url: Annotated[str, Field(pattern=r"^https?://[^/?#@]+(/[^?#]*[^/?#])?$")] | None = None
    stream: Stream = Stream()
    poll: Poll = Poll()
    subscriptions: Subscriptions = Subscriptions()
    privacy: Privacy = Privacy()
    sink: Sink = Sink()
    #: DialedIn: the beginning of the account's host name.
    account_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{0,62}$")] | None = None
    #: Of the provider's clocks that have none; None: it has no such clocks.
    timezone: str | None = None
    #: What its provider leaves open; the provider's own model has the names and the defaults.
    assume: dict[str, Any] = {}
    #: For numbers without a country; without it they stay as they are.
    region: Annotated[str, Field(pattern=r"^[A-Z]{2}$")] | None = None
    #: ``exp`` and ``nbf`` are checked if present: a retry of an SMS may be 4 h old.
    claims_leeway_s: Annotated[float, Field(ge=0)] = 18_000.0

    @field_validator("timezone")
    @classmethod
    def _is_a_zone(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                ZoneInfo(value)
            except (KeyError, OSError, ValueError):
                raise ValueError("there is no such time zone: write America/New_York") from None
        return value

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Put what is usual for its provider where nothing else is said."""
        if not isinstance(values, dict):
            return values
        provider, poll = values.get("provider"), values.get("poll", {})
        if provider == "dialedin":
            values = {"timezone": _DIALEDIN_ZONE, **values}
        usual = _POLL_DEFAULTS.get(provider) if isinstance(provider, str) else None
        if usual is None or not isinstance(poll, dict):
            return values
        return {**values, "poll": {**usual, **poll}}

    @property
    def has_secrets(self) -> bool:
        return bool(self.secrets or self.secret_files)

    @property
    def has_key(self) -> bool:
        return self.api_key is not None or self.api_key_file is not None

    @property
    def polled(self) -> bool:
        return self.has_key if self.poll.enabled is None else self.poll.enabled

    @property
    def judged(self) -> bool:
        """Whether it is pushed and read back, so that each can be held against the other."""
        return self.polled and (self.has_secrets or self.stream.enabled)

    def key(self) -> str:
        """The API key; its file is read anew. Raises ConfigError."""
        if self.api_key is not None:
            found = self.api_key.get_secret_value()
        elif self.api_key_file is None:
            raise ConfigError("api_key: there is none: set it, or api_key_file")
        else:
            try:
                found = read_secret(self.api_key_file).decode("ascii")
            except OSError as error:
                raise ConfigError(
                    f"api_key_file: {self.api_key_file} cannot be read ({error.strerror})"
                ) from None
            except UnicodeDecodeError:
                raise ConfigError(f"api_key_file: {self.api_key_file} holds no key") from None
        if not found.isascii() or not found.isprintable() or not found.strip():
            raise ConfigError("api_key: that is no key: it is empty, or has more than one line")
        return found

    def signing_secrets(self) -> tuple[bytes, ...]:
        """All current secrets; files are read anew. Raises ConfigError, one fault a secret."""
        found, faults = [], []
        for number, secret in enumerate(self.secrets):
            found.append(secret.get_secret_value().encode())
            if not found[-1].strip(b"\0"):
                faults.append(f"secrets[{number}] is empty: an empty secret lets anybody sign")
        for path in self.secret_files:
            try:
                found.append(read_secret(path))
            except OSError as error:
                faults.append(f"secret_files: {path} cannot be read ({error.strerror})")
                continue
            if not found[-1].strip(b"\0"):
                faults.append(f"secret_files: {path} holds an empty secret: put the secret into it")
        if not self.has_secrets:
            faults.append(
                "there is no secret: set `secrets` or `secret_files` to what the provider signs "
                "with (one, or two while you rotate)"
            )
        if faults:
            raise ConfigError(*faults)
        return tuple(found)


class Pair(Section):
    """Two connections that see the same calls."""

    pushed: str
    recorded: str
    #: Which calls both must have seen, E.164. Empty: those of the recorded side's agents.
    numbers: tuple[Annotated[str, Field(pattern=r"^\+[1-9][0-9]{6,14}$")], ...] = ()
    #: How far apart two starts may be.
    gate_s: Annotated[float, Field(ge=0)] = 300.0
    #: How much better the best has to be than the next.
    ambiguity_margin_s: Annotated[float, Field(ge=0)] = 5.0
    #: What the record's clock tells.
    recorded_start: Literal["start", "end"] = "start"
    #: What the record's duration counts: since somebody answered, holds included, or all of it.
    recorded_duration: Literal["connected", "total"] = "connected"


class Reconcile(Section):
    """Matching what was pushed with what was recorded."""

    #: None: where a connection is both pushed and polled, or there is a pair.
    enabled: bool | None = None
    #: Calls that began before are not judged. Empty: since the first start on this event log.
    since: datetime | None = None
    #: At the earliest this long after its end a call is judged,
    settle_s: Seconds = 900.0
    #: and at the latest this long after it, even if nobody has read the provider's list.
    hold_max_s: Seconds = 21_600.0
    #: How far back facts may still change a verdict.
    window_s: Seconds = 259_200.0
    start_tolerance_s: Annotated[float, Field(ge=0)] = 15.0
    duration_tolerance_s: Annotated[float, Field(ge=0)] = 3.0
    duration_tolerance_ratio: Annotated[float, Field(ge=0, le=1)] = 0.05
    #: How complete the stream has to be.
    objective: Annotated[float, Field(ge=0, le=1)] = 0.999
    pairs: tuple[Pair, ...] = ()

    @field_validator("since", mode="before")
    @classmethod
    def _no_time(cls, value: Any) -> Any:
        return value or None

    @field_validator("since")
    @classmethod
    def _with_zone(cls, value: datetime | None) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("it has no zone: add Z")
        return value


class Settings(Section):
    receiver: Receiver = Receiver()
    admin: Admin = Admin()
    eventlog: EventLog = EventLog()
    kafka: Kafka = Kafka()
    logging: Logging = Logging()
    quarantine: Quarantine = Quarantine()
    reconcile: Reconcile = Reconcile()
    connections: dict[str, Connection] = {}

    @property
    def reconciled(self) -> bool:
        """Whether there is a ledger."""
        if self.reconcile.enabled is not None:
            return self.reconcile.enabled
        return bool(self.reconcile.pairs) or any(each.judged for each in self.connections.values())

    @property
    def drops(self) -> dict[str, frozenset[PrivacyClass]]:
        """What is not to be written, of the connections that have something of the kind."""
        return {
            name: connection.privacy.drop
            for name, connection in self.connections.items()
            if connection.privacy.drop
        }


def load_settings(file: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Settings of ``file``, else of DIALSTREAM_CONFIG, else of ./dialstream.toml if there is one.

    Without a file and without connections there is one named ``dev`` whose secret is made when it
    is needed first. Raises ConfigError with every fault.
    """
    environ = os.environ if environ is None else environ
    named = file or (Path(environ[PREFIX + "CONFIG"]) if environ.get(PREFIX + "CONFIG") else None)
    values = _read_file(named or DEFAULT_FILE, required=named is not None)
    has_file = values is not None
    values = values or {}
    variables = _read_environment(values, environ)
    where = str(named or DEFAULT_FILE)
    faults = [_fault(error, variables, where) for error in _errors(Settings, values)]
    faults += _faults_of_kafka(values)
    faults += _faults_of_connections(values, variables, where)
    faults += _faults_of_pairs(values)
    if faults:
        raise ConfigError(*faults)
    settings = Settings.model_validate(values)
    if not has_file and not settings.connections:
        path = settings.eventlog.path / f"{DEFAULT_CONNECTION}.secret"
        default = _DefaultConnection(provider="dialpad", secret_files=(path,), region="US")
        return settings.model_copy(update={"connections": {DEFAULT_CONNECTION: default}})
    return settings


def read_secret(path: Path) -> bytes:
    """A secret from its file; one final line break is not part of it."""
    return re.sub(rb"\r?\n\Z", b"", path.read_bytes())


def _read_file(path: Path, *, required: bool) -> dict[str, Any] | None:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not required:
            return None
        raise ConfigError(f"{path} does not exist: name a settings file that does") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no TOML: it is not in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        # The message holds a position and at most one character.
        raise ConfigError(f"{path} is no TOML: {error}") from None
    except (ValueError, RecursionError):  # the parser's own limits
        raise ConfigError(
            f"{path} is no TOML: a number or a nesting is beyond all bounds"
        ) from None


def _read_environment(
    values: dict[str, Any], environ: Mapping[str, str]
) -> dict[tuple[str, ...], str]:
    """Put variables DIALSTREAM_<SECTION>__<KEY> into ``values``; return path → variable."""
    variables = {}
    for name, text in environ.items():
        path = tuple(name.removeprefix(PREFIX).lower().split("__"))
        if not name.startswith(PREFIX) or len(path) == 1:
            continue
        variables[path] = name
        at = values
        for part in path[:-1]:
            inner = at.get(part)
            at[part] = at = dict(inner) if isinstance(inner, dict) else {}
        at[path[-1]] = _from_text(text)
    return variables


def _from_text(text: str) -> object:
    """Lists and tables come as JSON, everything else as it is: the models know the types."""
    if text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _errors(model: type[Section], values: dict[str, Any]) -> list[Any]:
    try:
        model.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=True)
        # A default that goes by others is none of the faults: theirs are told.
        return [one for one in found if one["type"] != "default_factory_not_called"]
    return []


def _fault(
    error: Any,
    variables: Mapping[tuple[str, ...], str],
    where: str,
    model: type[Section] = Settings,
    at: tuple[str, ...] = (),
) -> str:
    """One line: the key, what is wrong, what to do. Never the value: it may be a secret.

    ``model``: what was not satisfied; ``at``: where it stands in the settings.
    """
    inner = tuple(map(str, error["loc"]))
    path = (*at, *inner)
    said_by = (
        variable
        for at, variable in variables.items()
        if at[: len(path)] == path[: len(at)]  # above it, or below where a table ought to be
    )
    source = next(said_by, where)
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        known = _known_keys(model, inner[:-1])
        near = difflib.get_close_matches(path[-1], known, 1, 0.5)
        mend = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known) or 'none'}"
        return f"{key} is not known ({source}): {mend}"
    if error["type"] == "missing":
        return f"{key} is missing ({source}): add it"
    return f"{key} ({source}): {error['msg']}"


def _known_keys(model: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    """The keys that may stand in ``model`` below ``path``."""
    if path[:1] == ("connections",):
        model, path = Connection, path[2:]
    for part in path:
        if part not in model.model_fields:
            continue  # a place in a list
        annotation = model.model_fields[part].annotation
        if get_origin(annotation) is tuple:
            annotation = get_args(annotation)[0]
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return sorted(model.model_fields)


class _DefaultConnection(Connection):
    """Its secret is made by whoever signs or verifies first, and by nobody who only reads."""

    def signing_secrets(self) -> tuple[bytes, ...]:
        for path in self.secret_files:
            _make_secret(path)
        return super().signing_secrets()


def _make_secret(path: Path) -> None:
    """Write a secret, unless there is one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
    except FileExistsError:
        pass
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror}): set eventlog.path to a folder that can"
        ) from None


def _faults_of_kafka(values: dict[str, Any]) -> list[str]:
    try:
        kind = EventLog.model_validate(values.get("eventlog", {})).kind
        kafka = Kafka.model_validate(values.get("kafka", {}))
    except ValidationError:
        return []  # told already
    if kind != "kafka":
        return []
    faults = [f"kafka.{fault}" for fault in kafka.faults()]
    with suppress(ValidationError):
        within_s = Receiver.model_validate(values.get("receiver", {})).answer_within_s
        if kafka.publish_timeout_s + SPOOL_S > within_s:
            faults.append(
                f"kafka.publish_timeout_s: {kafka.publish_timeout_s} s leave no time to spool and "
                f"to answer within receiver.answer_within_s ({within_s} s): make it {SPOOL_S} s "
                "less"
            )
    return faults


def _unreadable(key: str, path: Path | None, error: OSError) -> str:
    what = "is no PEM file that fits" if isinstance(error, ssl.SSLError) else error.strerror
    return f"{key}: {path} cannot be read ({what})"


def _faults_of_connections(
    values: dict[str, Any], variables: Mapping[tuple[str, ...], str], where: str
) -> list[str]:
    """What the models cannot see: names, providers, secrets. Beside whatever else is wrong."""
    from ingest.providers import PROVIDERS  # noqa: PLC0415 - loads parsers that few commands need

    connections = values.get("connections")
    faults = []
    for name, table in connections.items() if isinstance(connections, dict) else ():
        at = f"connections.{name}"
        if not _NAME.match(name):
            faults.append(
                f"{at}: a name is made of small letters, digits and single underscores, begins "
                "with a letter and has at most 32 of them"
            )
        try:
            connection = Connection.model_validate(table)
        except ValidationError:
            continue  # its faults are told already
        if connection.provider not in PROVIDERS:
            near = difflib.get_close_matches(connection.provider, PROVIDERS, 1, 0.5)
            mend = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(PROVIDERS)}"
            faults.append(f"{at}.provider: {connection.provider!r} is not known; {mend}")
            continue
        provider = PROVIDERS[connection.provider]
        faults += [
            f"{at}.poll.also: {provider.name} has no {what}; known: {', '.join(provider.also)}"
            for what in connection.poll.also
            if what not in provider.also
        ]
        if connection.stream.enabled and provider.stream is None:
            faults.append(f"{at}.stream.enabled: {provider.name} has no websocket: set it to false")
        faults += [f"{at}.{fault}" for fault in _faults_of_sink(connection, provider)]
        assume, place = provider.assumptions or Section, ("connections", name, "assume")
        assumed_wrongly = _errors(assume, connection.assume)
        faults += [_fault(error, variables, where, assume, place) for error in assumed_wrongly]
        for check in _checks(connection, provider, can_assume=not assumed_wrongly):
            try:
                check()
            except ConfigError as error:
                faults += [f"{at}.{fault}" for fault in error.faults]
    return faults


def _faults_of_sink(connection: Connection, provider: "Provider") -> Iterator[str]:
    sink = connection.sink
    if not provider.takes_commands:
        for name in sink.rules:
            yield f"sink.{name}: {provider.name} is told nothing: set it to false"
        if connection.account_id is not None:
            yield f"account_id: {provider.name} has none: leave it out"
        return
    if connection.account_id is None:
        yield "account_id: it is missing: add the beginning of the account's host name"
    if sink.lead_on_missed and not sink.lead_campaign.strip():
        yield "sink.lead_campaign: it is missing: name the campaign that gets the leads"
    if sink.lead_dial and not sink.lead_on_missed:
        yield "sink.lead_dial: there are no leads: set sink.lead_on_missed, or leave it out"
    if connection.poll.enabled:
        yield f"poll.enabled: {provider.name} has nothing to be read: leave it out"


def _checks(
    connection: Connection, provider: "Provider", *, can_assume: bool
) -> Iterator[Callable[[], object]]:
    """What raises ConfigError if a secret or a key is missing, or cannot be used."""
    has_neither = not connection.has_secrets and not connection.has_key
    # Where there is no websocket, pushes are hints at what is to be read with the key.
    lacks_key = has_neither and provider.stream is None
    if connection.has_secrets and can_assume:
        # It reads the secrets, too, and knows what they have to look like.
        yield lambda: provider.webhook(connection)
    elif connection.has_secrets or connection.stream.enabled or (has_neither and not lacks_key):
        yield connection.signing_secrets
    if connection.has_key or connection.stream.enabled or connection.polled or lacks_key:
        yield connection.key


def in_force(settings: Settings) -> dict[str, Any]:
    """All values, as a settings file has them; secrets masked, assumptions with their defaults."""
    from ingest.providers import PROVIDERS  # noqa: PLC0415 - as above

    values = settings.model_dump(mode="json", exclude_none=True)
    for name, connection in settings.connections.items():
        assumptions = PROVIDERS[connection.provider].assumptions
        if assumptions is not None:
            assumed = assumptions.model_validate(connection.assume)
            values["connections"][name]["assume"] = assumed.model_dump(mode="json")
    return values


def _faults_of_pairs(values: dict[str, Any]) -> list[str]:
    try:
        pairs = Reconcile.model_validate(values.get("reconcile", {})).pairs
    except ValidationError:
        return []  # told already
    connections = values.get("connections")
    known = sorted(connections) if isinstance(connections, dict) else []
    faults = []
    seen = set()
    for nth, pair in enumerate(pairs):
        at = f"reconcile.pairs.{nth}"
        for side, name in (("pushed", pair.pushed), ("recorded", pair.recorded)):
            if name not in known:
                near = difflib.get_close_matches(name, known, 1, 0.5)
                mend = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                faults.append(f"{at}.{side}: there is no connection {name!r}; {mend}")
        if pair.pushed == pair.recorded:
            faults.append(
                f"{at}: pushed and recorded are the same: a connection's own records are "
                "reconciled with its pushes without a pair"
            )
        if (pair.pushed, pair.recorded) in seen:
            faults.append(f"{at}: this pair is there already: leave one of the two")
        seen.add((pair.pushed, pair.recorded))
    return faults
