"""``directory``: who and what is ours."""

from enum import StrEnum

from schemas.base import Data, Id


class DirectoryKind(StrEnum):
    USER = "user"
    AGENT = "agent"
    OFFICE = "office"
    DEPARTMENT = "department"
    CALL_CENTER = "call_center"
    NUMBER = "number"
    UNKNOWN = "unknown"


class Directory(Data):
    kind: DirectoryKind
    id: Id
    name: str | None = None
    email: str | None = None
    numbers: list[str] = []
    owner_id: str | None = None
