"""The base of every error that probesweep raises on purpose, in all packages, which do not import each other."""

from collections.abc import Generator
from contextlib import contextmanager


class ProbesweepError(Exception):
    """What went wrong, in one line: what, where, how to fix it.

    Attributes
    ----------
    argument : str or None
        Name in Python of the argument at fault. After a dot comes the key or the column in it, where one is known:
        "chat_template_kwargs.date".
    """

    def __init__(self, message: str, *, argument: str | None = None) -> None:
        super().__init__(message)
        self.argument = argument


@contextmanager
def naming(argument: str) -> Generator[None]:
    """Say of errors that name no argument that they are about this one."""
    try:
        yield
    except ProbesweepError as error:
        error.argument = error.argument or argument
        raise
