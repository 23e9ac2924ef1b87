"""Foreign bytes for people: nothing in them that a terminal would obey."""


def readable(body: bytes) -> str:
    """The text in ``body``, on one line; what is no text, or does not print, is escaped."""
    text = body.decode("utf-8", "backslashreplace")
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )
