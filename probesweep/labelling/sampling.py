"""How answers are sampled."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from probesweep.errors import RequestError

_MOST_SEEDS = 2**64
_DEFAULT_SAMPLES = 8


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled.

    Parameters
    ----------
    n_samples : int, optional
        Attempts at each question; by default 8, or 1 at temperature 0.
    temperature : float
        Divides the logits; 0 takes the most probable token, in one attempt.
    top_p : float
        Draw from the fewest tokens that have this probability together; 1: from all.
    top_k : int, optional
        Draw from so many of the most probable tokens; by default from all.
    max_new_tokens : int
        Most tokens of an answer.
    seed : int
    """

    n_samples: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    max_new_tokens: int = 256
    seed: int = 0

    def check(self) -> None:
        """Raise `RequestError` for a value that no model can sample with."""
        for name in ("n_samples", "top_k", "max_new_tokens", "seed"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise RequestError(f"{name}={value!r} must be a whole number", argument=name)
        wrong = {
            "n_samples": (self.n_attempts < 1, "1 or more"),
            "temperature": (not 0 <= self.temperature < float("inf"), "0 or more"),
            "top_p": (not 0 < self.top_p <= 1, "more than 0 and at most 1"),
            "top_k": (self.top_k is not None and self.top_k < 1, "1 or more, or left out"),
            "max_new_tokens": (self.max_new_tokens < 1, "1 or more"),
            "seed": (not 0 <= self.seed < _MOST_SEEDS, "between 0 and 2**64 - 1"),
        }
        for name, (is_wrong, wanted) in wrong.items():
            if is_wrong:
                raise RequestError(f"{name}={getattr(self, name)!r} must be {wanted}", argument=name)
        if self.is_greedy and self.n_attempts > 1:
            raise RequestError(
                f"temperature=0 gives the same answer each time, and n_samples={self.n_samples} asks for several; give "
                "n_samples=1, or a temperature above 0",
                argument="n_samples",
            )

    @property
    def n_attempts(self) -> int:
        """Attempts at each question."""
        if self.n_samples is not None:
            return self.n_samples
        return 1 if self.is_greedy else _DEFAULT_SAMPLES

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0


def attempt_seed(seed: int, row: int, attempt: int) -> int:
    """A seed for one attempt, of 31 bits, which every engine takes."""
    digest = hashlib.sha256(f"{seed} {row} {attempt}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
