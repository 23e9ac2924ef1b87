"""What is known of one thing, for people: nothing in it that a terminal would obey."""

from collections.abc import Mapping

import orjson


def readable(body: bytes) -> str:
    """The text in ``body``, on one line; what is no text, or does not print, is escaped."""
    return plain(body.decode("utf-8", "backslashreplace"))


def plain(text: str) -> str:
    """A text on one line; what does not print is escaped: part of it may be a stranger's."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def print_fields(told: Mapping[str, object]) -> None:
    """A line each."""
    for name, value in told.items():
        if isinstance(value, (list, tuple, dict)):
            value = orjson.dumps(value).decode()  # noqa: PLW2901
        print(f"{name + ':':<15} {'-' if value is None else plain(str(value))}")
    print()
