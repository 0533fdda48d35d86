"""A model of transformers in this process."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from activation_store.bars import bars_at_terminals
from activation_store.capture.batches import useful_prefix
from activation_store.capture.footprint import free_nbytes
from activation_store.capture.parity import choose_rows, first_rows
from activation_store.errors import DeviceMemoryError, ParityError
from activation_store.models.loading import load_causal_lm
from activation_store.store.provenance import library_versions
from probesweep.labelling.attempts import Sampler, check_finite
from probesweep.labelling.engines.engine import LENGTH, STOP, Answer, Batch
from probesweep.labelling.engines.prompted import PromptedModel
from probesweep.labelling.plan import plan_batches
from probesweep.labelling.sampling import Sampling

# Attempts beyond which a step takes no less time for each, measured on two cores; a GPU takes far more.
_ENOUGH_ATTEMPTS = {"cpu": 128}
_ENOUGH_ATTEMPTS_OF_A_GPU = 1024
# Of the free memory, for keys and values: the rest is for what a step needs, and for what allocators waste.
_SHARE_OF_FREE = 0.5

logger = logging.getLogger(__name__)


@dataclass
class LocalEngine:
    """A model of transformers in this process.

    Parameters
    ----------
    model : PromptedModel
    sampling : Sampling
    batch_size : int or None
        Most questions of a batch.
    """

    model: PromptedModel
    sampling: Sampling
    batch_size: int | None = None
    _sampler: Sampler | None = field(default=None, init=False)

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decides the answers."""
        return {"engine": "transformers", **self.model.identity}

    @property
    def versions(self) -> Mapping[str, str | None]:
        """Of the libraries."""
        return library_versions()

    @property
    def prompts(self) -> list[str | None]:
        """As the model reads them."""
        return self.model.texts

    def load(self) -> None:
        """Load the weights, and run what all prompts begin with."""
        known = self.model.known
        with bars_at_terminals():
            loaded = load_causal_lm(known.source, known.info, dtype=self.model.dtype, device=known.device)
        self.use(loaded)

    def use(self, loaded: Any) -> None:
        """Take weights that are in memory, and run what all prompts begin with.

        Raises
        ------
        NonFiniteError
            The model returns NaN or infinity.
        ParityError
            The model answers prompts in a batch otherwise than one at a time.
        """
        encoded = self.model.encoded
        sampler = Sampler(loaded, self.sampling, self.model.end_tokens)
        first = [encoded.row(row) for row in first_rows(encoded.n_tokens)]
        compared = [first[row] for row in choose_rows(first)]
        alone = torch.cat([sampler.read([prompt]) for prompt in compared])
        check_finite(alone)
        if self.batch_size != 1 and _differ(sampler.read(compared), alone):
            raise ParityError(
                "prompts in a batch get other answers than one at a time, by more than rounding; try batch_size=1 or "
                "dtype='float32'",
                argument="batch_size",
            )
        prefix = encoded.token_ids[: useful_prefix(encoded.token_ids, encoded.starts, 1)]
        sampler.share(prefix, int(encoded.n_tokens.max()) + self.sampling.max_new_tokens)
        # One at a time and together: some models count padding, which then stands behind the prefix.
        batches = (
            [[prompt] for prompt in compared] if self.batch_size == 1 else [*([one] for one in compared), compared]
        )
        shared = torch.cat([sampler.read(batch) for batch in batches]) if len(prefix) else alone
        if _differ(shared, alone.repeat(len(shared) // len(alone), 1)):
            logger.warning("reusing the prompts' common prefix changes the answers: it is not reused")
            sampler.share(prefix[:0], 0)
        self._sampler = sampler

    def plan(self) -> list[Batch]:
        """Questions of like length together, as many as keep the device busy and fit into its free memory."""
        assert self._sampler is not None
        device, n_attempts = self.model.known.device, self.sampling.n_attempts
        enough = max(1, _ENOUGH_ATTEMPTS.get(device.type, _ENOUGH_ATTEMPTS_OF_A_GPU) // n_attempts)
        question_nbytes = self._sampler.token_nbytes() * n_attempts
        return plan_batches(
            self.model.encoded.n_tokens + self.sampling.max_new_tokens,
            max_rows=self.batch_size or enough,
            max_tokens=int(free_nbytes(device) * _SHARE_OF_FREE) // question_nbytes,
        )

    def answer(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, list[list[Answer]]]]:
        """Run batches one after another."""
        assert self._sampler is not None
        for batch in batches:
            prompts = [self.model.encoded.row(row) for row in batch]
            try:
                drawn = self._sampler.draw(prompts, batch)
            except torch.OutOfMemoryError as error:
                raise DeviceMemoryError(
                    f"{len(batch)} questions with {self.sampling.n_attempts} attempts each do not fit into the memory "
                    f"of {self.model.known.device}; what is done is kept: run the same command again with a smaller "
                    "batch_size=...",
                    argument="batch_size",
                ) from error
            yield batch, [[self._answer(one.token_ids, is_cut=one.is_cut) for one in of_row] for of_row in drawn]

    def _answer(self, token_ids: Sequence[int], *, is_cut: bool) -> Answer:
        text = self.model.known.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return Answer(text, LENGTH if is_cut else STOP, len(token_ids))


def _differ(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether logits differ by more than rounding, which is where half of the digits do not agree."""
    allowed = torch.finfo(found.dtype).eps ** 0.5
    found, expected = found.float(), expected.float()
    error = (found - expected).norm(dim=1) / expected.norm(dim=1)
    return not bool((error <= allowed).all())
