"""What every engine does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

# Why an answer ended: by itself, or because it had as many tokens as are allowed.
STOP, LENGTH = "stop", "length"
# Questions by their rows in the dataset, answered together.
Batch = tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """What a model answered once.

    Parameters
    ----------
    text : str
    finish_reason : str
        `STOP`, `LENGTH`, or what else a server says.
    n_tokens : int or None
        Tokens of the answer; None where a server does not say.
    """

    text: str
    finish_reason: str
    n_tokens: int | None


@runtime_checkable
class Engine(Protocol):
    """A model that answers the questions of one dataset.

    Attributes
    ----------
    identity : mapping
        What decides its answers, as JSON: an output that was made with another is not gone on with.
    versions : mapping
        Of the libraries that it uses; other ones may round otherwise.
    prompts : list of str or None
        The prompts as the model reads them, None in place of one that no text gives; None where only the server knows.
    """

    @property
    def identity(self) -> Mapping[str, Any]: ...

    @property
    def versions(self) -> Mapping[str, str | None]: ...

    @property
    def prompts(self) -> list[str | None] | None: ...

    def load(self) -> None:
        """Load the weights, or ask the server whether it has the model."""
        ...

    def plan(self) -> list[Batch]:
        """Which questions are answered together: all of them, each once.

        The same inputs may give another plan on another machine, so that a plan is kept with the answers.
        """
        ...

    def answer(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, list[list[Answer]]]]:
        """Answer batches of a plan, in any order.

        Yields
        ------
        tuple of Batch and list of list of Answer
            A batch, and for each of its questions the attempts in order.
        """
        ...
