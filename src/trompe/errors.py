"""The one exception a user is meant to read, and text that is safe to read."""

import re
import unicodedata

_LONGEST = 10_000  # characters of a message
_STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format (bidi), surrogates, line separators
_KEPT = "\n\t\u200c\u200d"  # the joiners are part of how Persian, Hindi and emoji are written


def printable(text: str) -> str:
    """The text with a ? for what would steer a terminal or turn the direction of writing."""
    if text.isprintable():
        return text
    return "".join(
        "?" if c not in _KEPT and unicodedata.category(c) in _STEERING else c for c in text
    )


class TrompeError(ValueError):
    """Something that was given can't be used; the message says what, and what to do.

    It is one printable line, whatever stood in what was given. The command line prints it and exits
    with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(re.sub(r"\s*\n\s*", " ", message[:_LONGEST])))
