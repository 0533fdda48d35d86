"""One extraction with everything known but the weights: what it reads, what it stores, how it is told from others."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from activation_store.capture.batches import BatchPlan, token_budget, useful_prefix
from activation_store.capture.footprint import enough_tokens, free_nbytes, token_nbytes, weights_nbytes
from activation_store.capture.hidden_states import HiddenStates
from activation_store.capture.parity import first_rows
from activation_store.errors import DeviceMemoryError
from activation_store.format.dtypes import numpy_dtype
from activation_store.format.layout import balanced_shard_samples
from activation_store.format.spec import COORDINATES, StoreSpec
from activation_store.models.info import ModelInfo
from activation_store.models.loading import empty_decoder
from activation_store.models.source import ModelSource
from activation_store.prompts.prompts import PromptFormat, Prompts
from activation_store.prompts.tokenizer import Tokenizer, chat_template_hash, tokenizer_hash
from activation_store.prompts.truncation import TRUNCATION_RULE
from activation_store.questions.dataset import Dataset
from activation_store.questions.question import question_text
from activation_store.store.provenance import library_versions


@dataclass(frozen=True)
class Job:
    """One extraction, everything checked but the weights.

    Parameters
    ----------
    dataset : Dataset
        What was read.
    source, info
        The model.
    tokenizer : Tokenizer
        Of the model.
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
    prompt_format : PromptFormat
        How questions became prompts.
    template_day : str or None
        Today (ISO 8601), where the template can write it into prompts.
    """

    dataset: Dataset
    source: ModelSource
    info: ModelInfo
    tokenizer: Tokenizer
    prompts: Prompts
    layers: tuple[int, ...]
    dtype: str
    device: torch.device
    device_map: str | None
    prompt_format: PromptFormat
    template_day: str | None

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What decides which store an extraction may go on with."""
        given = self.prompt_format
        return {
            "model": self.source.name,
            "weights": self.info.weights,
            "tokenizer": tokenizer_hash(self.tokenizer),
            "chat_template": chat_template_hash(self.tokenizer) if given.use_chat_template else None,
            "chat_template_kwargs": given.template_kwargs,
            "n_samples": len(self.dataset.questions),
            "dataset": self.dataset.content_hash,
            "question_column": self.dataset.question_column,
            "label_columns": list(self.dataset.labels),
            # Stores from before there were groups are taken up as well.
            **({"group_columns": list(self.dataset.groups)} if self.dataset.groups else {}),
            "prompts": hashlib.sha256(self.prompts.token_ids.tobytes() + self.prompts.starts.tobytes()).hexdigest(),
            "layers": list(self.layers),
            "positions": list(self.prompts.positions),
            "dtype": self.dtype,
            "truncation": None if given.cut_to is None else {"max_length": given.cut_to, "rule": TRUNCATION_RULE},
        }

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
        per_token = token_nbytes(decoder, self.info.n_features, longest)
        n_tokens = token_budget(enough_tokens(self.device), free_nbytes(self.device) - taken, per_token)
        return BatchPlan(n_tokens, max_rows, prefix_tokens), taken

    def spec(self, shard_samples: int | None) -> StoreSpec:
        """Describe the store.

        Parameters
        ----------
        shard_samples : int or None
            Samples of one shard; None: as many as make a file of at most 256 MiB.
        """
        n_samples, prompts = len(self.dataset.questions), self.prompts
        n_values = len(self.layers) * len(prompts.positions) * self.info.n_features
        balanced = balanced_shard_samples(n_samples, n_values * numpy_dtype(self.dtype).itemsize)
        return StoreSpec(
            n_samples=n_samples,
            layers=self.layers,
            positions=prompts.positions,
            n_features=self.info.n_features,
            dtype=self.dtype,
            shard_samples=min(shard_samples or balanced, n_samples),
            coordinates=(*COORDINATES, *self.dataset.groups),
            label_columns=tuple(self.dataset.labels),
            fingerprint=self.fingerprint,
            provenance={
                "model_revision": self.info.revision,
                "template_tail": prompts.tail,
                "template_day": self.template_day,
                "truncated_rows": list(prompts.truncated_rows),
                "control_strings": {
                    "rows_as_text": len(prompts.control_rows.as_text),
                    "rows_as_tokens": list(prompts.control_rows.as_tokens),
                },
                "padding": "right, without a mask; the last real tokens are gathered",
                "versions": library_versions(),
            },
        )

    def beside(self) -> dict[str, np.ndarray]:
        """Values of the arrays next to the activations."""
        token_ids = self.prompts.tail_ids()
        distinct, place = np.unique(token_ids, return_inverse=True)
        decoded = np.array([self.tokenizer.decode([token]) for token in distinct.tolist()], dtype=object)
        return {
            "n_tokens": self.prompts.n_tokens.astype(np.int32),
            "token_id": token_ids,
            "token": decoded[place].reshape(token_ids.shape),
            "prompt_hash": self.prompts.text_hash,
            "question": np.array([question_text(question) for question in self.dataset.questions], dtype=object),
            **self.dataset.labels,
            **self.dataset.groups,
        }
