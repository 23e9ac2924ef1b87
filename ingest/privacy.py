"""What a connection's setting ``privacy.drop`` keeps off the event log.

Of which class a field is stands at the field itself, in `schemas`; those of none are always kept.
Ids are made before, of what the provider has said: they are the same whatever is dropped.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast, get_args

from msgspec.structs import replace
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ingest.settings import PrivacyClass
from schemas.event import Event
from schemas.subjects import SUBJECTS

Drops = Mapping[str, frozenset[PrivacyClass]]
"""Connection → classes of fields that are dropped; those that drop nothing need not be in it."""

_Place = tuple[Sequence[str], object, PrivacyClass]


def writable(event: Event, drops: Drops) -> Event:
    """What may be written of an event: itself, or a copy that has less. Rejects are kept whole.

    They are what nothing could be read of, and bytes are all that a later version can read.
    """
    drop = drops.get(event.connection)
    if not drop or event.subject_kind == "reject":
        return event
    data, raw = event.data, event.raw
    for path, nothing, of_class in _CLASSED[event.subject_kind]:
        if of_class in drop:
            data = _without(data, path, nothing)
    if "raw" in drop and raw is not None:
        raw = b"null"
    return replace(event, data=data, raw=raw)


def _without(data: dict[str, Any], path: Sequence[str], nothing: object) -> dict[str, Any]:
    """A copy in which ``nothing`` stands at a path, if there is anything."""
    name, *rest = path
    value = data.get(name)
    if not value:
        return data
    if rest and isinstance(value, list):
        return {**data, name: [_without(each, rest, nothing) for each in value]}
    if rest:
        return {**data, name: _without(value, rest, nothing)}
    return {**data, name: nothing}


def _classed(model: type[BaseModel]) -> Iterator[_Place]:
    """Where something of a class stands in a subject, and what stands there without."""
    for name, field in model.model_fields.items():
        if isinstance(field.json_schema_extra, dict) and "x-privacy" in field.json_schema_extra:
            nothing = field.get_default(call_default_factory=True)
            yield (name,), nothing, cast("PrivacyClass", field.json_schema_extra["x-privacy"])
        else:
            for inner in _models(field):
                for path, nothing, of_class in _classed(inner):
                    yield (name, *path), nothing, of_class


def _models(field: FieldInfo) -> Iterator[type[BaseModel]]:
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind


_CLASSED: Mapping[str, Sequence[_Place]] = {
    subject: tuple(place for place in _classed(model) if place[0] != ("raw",))
    for subject, model in SUBJECTS.items()
}
