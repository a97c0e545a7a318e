"""The one exception a user is meant to read."""


class TrompeError(ValueError):
    """Something that was given can't be used; the message says what, and what to do.

    The command line prints the message as one sentence and exits with code 2.
    """
