"""Stands in for a model: prompts that are numbers, and values that are known."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from activation_store.capture.batches import BatchPlan

PLAN = BatchPlan(max_tokens=64, max_rows=4, prefix_tokens=0)


@dataclass(frozen=True)
class KnownRun:
    """Stands in for `activation_store.extraction.model_run.ModelRun`: the values are known, and no model is loaded."""

    values: np.ndarray
    seconds: float
    device: Any = None

    @property
    def prompts(self) -> NumberedPrompts:
        """One per sample."""
        return NumberedPrompts(len(self.values))

    def begin(self, *_: object) -> tuple[KnownStates, BatchPlan]:
        """As `ModelRun.begin`."""
        return KnownStates(self.values, self.seconds), PLAN


@dataclass(frozen=True)
class NumberedPrompts:
    """Prompts of which each is its own number."""

    n_samples: int

    @property
    def n_tokens(self) -> np.ndarray:
        return np.ones(self.n_samples, dtype=np.int64)

    def row(self, sample: int) -> np.ndarray:
        """Its only token."""
        return np.array([sample])


@dataclass(frozen=True)
class KnownStates:
    """Gives the values of numbered prompts, after a while."""

    values: np.ndarray
    seconds: float
    attention: str = "none"

    @property
    def parity(self) -> dict[str, float]:
        return {}

    def start(self, prompts: Sequence[np.ndarray]) -> Callable[[], np.ndarray]:
        """As `HiddenStates.start`."""
        time.sleep(self.seconds)
        rows = [int(prompt[0]) for prompt in prompts]
        return lambda: self.values[rows]

    def first_nonfinite_module(self, prompt: np.ndarray) -> None:
        """No values are bad."""
