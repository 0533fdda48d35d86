"""Run batches in halves where they do not fit in the device's memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Integer

from activation_store.errors import DeviceMemoryError
from activation_store.prompts.prompts import TokenIds

logger = logging.getLogger(__name__)
T = TypeVar("T")


class SplittingRunner(Generic[T]):
    """Calls a function on batches of prompts, in parts where the device has not memory enough for a whole one.

    Parameters
    ----------
    run : callable
        Takes prompts, such as `HiddenStates.start`.
    """

    def __init__(self, run: Callable[[Sequence[TokenIds]], T]) -> None:
        self._run = run
        self._too_many_tokens: int | None = None

    def run(
        self, rows: Integer[np.ndarray, " row"], prompts: Sequence[TokenIds]
    ) -> Generator[tuple[Integer[np.ndarray, " row"], T]]:
        """Run a batch.

        Parameters
        ----------
        rows : ndarray [row]
            Sample index of every prompt.
        prompts : sequence of ndarray [token]
            Their token ids.

        Yields
        ------
        tuple of ndarray and T
            Sample indices and what `run` returned for them; together they are `rows`, in order.

        Raises
        ------
        DeviceMemoryError
            A single prompt does not fit.
        """
        if not self._is_too_large(prompts):
            found = self._try(rows, prompts)
            if found is not None:
                yield rows, found
                return
        half = (len(rows) + 1) // 2
        yield from self.run(rows[:half], prompts[:half])
        yield from self.run(rows[half:], prompts[half:])

    def _try(self, rows: Integer[np.ndarray, " row"], prompts: Sequence[TokenIds]) -> T | None:
        try:
            return self._run(prompts)
        except torch.OutOfMemoryError as error:
            self._note(rows, prompts, error)
        # Only here is the error gone, and with it the tensors that its frames held.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def _is_too_large(self, prompts: Sequence[TokenIds]) -> bool:
        """Whether a batch of as many tokens has failed before; a single prompt is always tried."""
        limit = self._too_many_tokens
        return limit is not None and len(prompts) > 1 and _n_padded(prompts) >= limit

    def _note(self, rows: Integer[np.ndarray, " row"], prompts: Sequence[TokenIds], error: Exception) -> None:
        n_tokens = _n_padded(prompts)
        if len(prompts) == 1:
            raise DeviceMemoryError(
                f"row {int(rows[0])} with {n_tokens} tokens does not fit in the device's memory, even alone; "
                "drop it, or try a 16-bit dtype=..., device_map='auto' or device='cpu'",
                argument="device",
            ) from error
        if self._too_many_tokens is None:
            logger.warning(
                "the device has too little memory for %d prompts of %d tokens: such batches are split in half",
                len(prompts),
                n_tokens,
            )
        self._too_many_tokens = min(n_tokens, self._too_many_tokens or n_tokens)


def _n_padded(prompts: Sequence[TokenIds]) -> int:
    return len(prompts) * max(len(prompt) for prompt in prompts)
