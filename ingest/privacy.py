"""What a connection's setting ``privacy.drop`` keeps off the event log.

Which fields are content stands at the fields themselves, in `schemas`. Ids are made before, of
what the provider has said: they are the same whatever is dropped.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from msgspec.structs import replace
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ingest.settings import PrivacyClass
from schemas.event import Event
from schemas.subjects import SUBJECTS

Drops = Mapping[str, frozenset[PrivacyClass]]
"""Connection → classes of fields that are dropped; those that drop nothing need not be in it."""

_Path = tuple[Sequence[str], object]


def writable(event: Event, drops: Drops) -> Event:
    """What may be written of an event: itself, or a copy that has less. Rejects are kept whole.

    They are what nothing could be read of, and bytes are all that a later version can read.
    """
    drop = drops.get(event.connection)
    if not drop or event.subject_kind == "reject":
        return event
    data, raw = event.data, event.raw
    if "content" in drop:
        for path, nothing in _CONTENT[event.subject_kind]:
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
    if rest:
        return {**data, name: _without(value, rest, nothing)}
    return {**data, name: nothing}


def _content(model: type[BaseModel]) -> Iterator[_Path]:
    """Where content stands in a subject, and what stands there without."""
    for name, field in model.model_fields.items():
        if isinstance(field.json_schema_extra, dict) and "x-privacy" in field.json_schema_extra:
            yield (name,), field.get_default(call_default_factory=True)
        else:
            for inner in _models(field):
                for path, nothing in _content(inner):
                    yield (name, *path), nothing


def _models(field: FieldInfo) -> Iterator[type[BaseModel]]:
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind


_CONTENT: Mapping[str, Sequence[_Path]] = {
    subject: tuple(_content(model)) for subject, model in SUBJECTS.items()
}
