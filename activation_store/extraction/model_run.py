"""Prompts and the model that runs them: all that a process needs to fill shards."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from activation_store.capture.batches import BatchPlan, token_budget, useful_prefix
from activation_store.capture.footprint import enough_tokens, free_nbytes, token_nbytes, weights_nbytes
from activation_store.capture.hidden_states import HiddenStates
from activation_store.capture.parity import first_rows
from activation_store.errors import DeviceMemoryError
from activation_store.models.info import ModelInfo
from activation_store.models.loading import empty_decoder
from activation_store.models.source import ModelSource
from activation_store.prompts.prompts import Prompts


@dataclass(frozen=True)
class ModelRun:
    """Prompts, and the model that runs them, not loaded.

    Parameters
    ----------
    source, info
        The model.
    prompts : Prompts
        One per sample.
    layers : tuple of int
        Indices into ``hidden_states``.
    dtype : str
        What the model computes in and what is stored.
    device : torch.device
        Where it runs.
    device_map : str or None
        Spreads it over the devices there are.
    """

    source: ModelSource
    info: ModelInfo
    prompts: Prompts
    layers: tuple[int, ...]
    dtype: str
    device: torch.device
    device_map: str | None

    def useful_prefix(self) -> int:
        """Tokens at the beginning of all prompts that are worth running once."""
        return useful_prefix(self.prompts.token_ids, self.prompts.starts, len(self.prompts.positions))

    def load(self, prefix_tokens: int, max_rows: int | None) -> HiddenStates:
        """Load the weights, and check that batches give what single prompts give.

        Parameters
        ----------
        prefix_tokens : int
            Tokens at the beginning of all prompts to run once.
        max_rows : int or None
            Most rows of a batch.
        """
        try:
            states = HiddenStates.load(
                self.source,
                self.info,
                self.layers,
                self.prompts.positions,
                dtype=self.dtype,
                device=self.device,
                device_map=self.device_map,
            )
            states.use_prefix(self.prompts.row(0)[:prefix_tokens])
            first = [self.prompts.row(row) for row in first_rows(self.prompts.n_tokens)]
            states.check(first, max_rows=max_rows or len(first))
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(
                f"{self.device} has no room for {self.source.name} and a few prompts ({error}); use "
                "device_map='auto', a 16-bit dtype=..., or device='cpu'",
                argument="device",
            ) from error
        return states

    def begin(
        self, prefix_tokens: int, max_rows: int | None, stored: BatchPlan | None = None
    ) -> tuple[HiddenStates, BatchPlan]:
        """Load the weights, and plan batches for the memory left free, or by the plan of a store that was begun.

        Parameters
        ----------
        prefix_tokens, max_rows
            As for `load`.
        stored : BatchPlan, optional
            The plan to keep to, as far as memory allows.
        """
        states = self.load(prefix_tokens, max_rows)
        return states, self.plan(states, max_rows) if stored is None else self.plan_that_fits(stored, states)

    def plan(self, states: HiddenStates, max_rows: int | None) -> BatchPlan:
        """Plan batches for the memory left free by the loaded model."""
        longest = int(self.prompts.n_tokens.max())
        n_tokens = token_budget(enough_tokens(states.device), free_nbytes(states.device), states.token_nbytes(longest))
        return BatchPlan(n_tokens, max_rows, states.n_prefix)

    def plan_that_fits(self, plan: BatchPlan, states: HiddenStates) -> BatchPlan:
        """A plan made earlier, perhaps on a larger machine or with a prefix that is not reused now."""
        present = self.plan(states, plan.max_rows)
        # Half of the free memory is planned with: up to twice that does no harm, and keeps the batches as they were.
        fits = plan.max_tokens <= 2 * present.max_tokens
        return BatchPlan(plan.max_tokens if fits else present.max_tokens, plan.max_rows, states.n_prefix)

    def plan_unloaded(self, prefix_tokens: int, max_rows: int | None) -> tuple[BatchPlan, int]:
        """Plan batches for the memory that will be free.

        Returns
        -------
        tuple of BatchPlan and int
            The plan, and the bytes of the weights.
        """
        decoder = empty_decoder(self.source, self.info, self.dtype)
        taken, longest = weights_nbytes(decoder), int(self.prompts.n_tokens.max())
        free = free_nbytes(self.device) - (0 if self.source.held else taken)
        per_token = token_nbytes(decoder, self.info.n_features, longest)
        n_tokens = token_budget(enough_tokens(self.device), free, per_token)
        return BatchPlan(n_tokens, max_rows, prefix_tokens), taken
