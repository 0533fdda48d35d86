"""The loop that samples attempts: each prompt runs once, then a token at a time for all of its attempts together."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from activation_store.errors import NonFiniteError
from activation_store.prompts.prompts import TokenIds
from probesweep.errors import RequestError
from probesweep.labelling.noise import add_gumbel
from probesweep.labelling.sampling import Sampling

# Attempts that have ended leave the batch when they are so many of it: to take rows out is to copy the others.
_SHARE_ENDED = 1 / 8


@dataclass(frozen=True)
class Drawn:
    """The tokens of one attempt.

    Parameters
    ----------
    token_ids : tuple of int
        Without the token that ends it.
    is_cut : bool
        It was not at its end after as many tokens as are allowed.
    """

    token_ids: tuple[int, ...]
    is_cut: bool


class Sampler:
    """A causal LM that answers prompts.

    Parameters
    ----------
    model : PreTrainedModel
        With its head.
    sampling : Sampling
    ends : sequence of int
        Tokens that end an answer.
    """

    def __init__(self, model: Any, sampling: Sampling, ends: Sequence[int]) -> None:
        self._model, self._sampling = model, sampling
        self._device = model.get_input_embeddings().weight.device
        self._ends = torch.tensor(sorted(ends), dtype=torch.int64, device=self._device)
        self._warpers = _warpers(sampling)
        parameters = inspect.signature(model.forward).parameters
        self._options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self._has_positions = "position_ids" in parameters
        self._prefix: list[Any] = []
        self._n_shared = 0

    @torch.inference_mode()
    def share(self, prefix: TokenIds, longest: int) -> None:
        """Run the tokens that all prompts begin with, once for all of them.

        Parameters
        ----------
        prefix : ndarray [token]
            Empty: nothing is shared any more.
        longest : int
            Most tokens of a prompt and its answer. Layers with a shorter sliding window count padding, which stands
            between the prefix and the rest of a prompt, so that nothing is shared.
        """
        self._prefix, self._n_shared = [], 0
        if not len(prefix):
            return
        cache = DynamicCache(config=self._model.config)
        self._run(self._tensor(prefix)[None], torch.ones(1, len(prefix), dtype=torch.int64, device=self._device), cache)
        layers = _layers_of(cache)
        if all(not layer.is_sliding or layer.sliding_window >= longest for layer in layers):
            self._prefix, self._n_shared = layers, len(prefix)

    @torch.inference_mode()
    def read(self, prompts: Sequence[TokenIds]) -> Float[Tensor, "row token"]:
        """Logits after the last token of every prompt, run in one batch."""
        return self._read(prompts)[0]

    def token_nbytes(self) -> int:
        """Bytes of the keys and values of one token."""
        cache = DynamicCache(config=self._model.config)
        one = torch.ones(1, 1, dtype=torch.int64, device=self._device)
        with torch.inference_mode():
            self._run(one, one, cache)
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in _layers_of(cache))

    @torch.inference_mode()
    def draw(self, prompts: Sequence[TokenIds], questions: Sequence[int]) -> list[list[Drawn]]:
        """Sample the attempts at some questions in one batch.

        Parameters
        ----------
        prompts : sequence of ndarray [token]
            All of them begin with what is shared and go on after it.
        questions : sequence of int
            Their numbers, which tell their noise apart.

        Returns
        -------
        list of list of Drawn
            The attempts at every question, in order.
        """
        n_attempts, most = self._sampling.n_attempts, self._sampling.max_new_tokens
        logits, mask, cache = self._read(prompts)
        cache.batch_repeat_interleave(n_attempts)
        cache.layers = [_with_room(layer, most) for layer in cache.layers]
        logits, mask = logits.repeat_interleave(n_attempts, 0), mask.repeat_interleave(n_attempts, 0)
        n_rows = len(prompts) * n_attempts
        question = self._tensor(questions).repeat_interleave(n_attempts)
        attempt = torch.arange(n_attempts, device=self._device).repeat(len(prompts))
        # Which rows of the result are still in the batch.
        row = torch.arange(n_rows, device=self._device)
        drawn = torch.full((n_rows, most), -1, dtype=torch.int64, device=self._device)
        ended = torch.zeros(n_rows, dtype=torch.bool, device=self._device)
        for step in range(most):
            token = self.choose(logits, question[row], attempt[row], step)
            drawn[row, step] = token
            ended[row] |= torch.isin(token, self._ends)
            n_ended = int(ended[row].sum())
            if n_ended == len(row) or step + 1 == most:
                break
            if n_ended >= _SHARE_ENDED * len(row):
                kept = (~ended[row]).nonzero()[:, 0]
                cache.batch_select_indices(kept)
                row, token, mask = row[kept], token[kept], mask[kept]
            mask = pad(mask, (0, 1), value=1)
            logits = self._run(token[:, None], mask, cache)
        return self._results(drawn, ended, len(prompts))

    def choose(
        self,
        logits: Float[Tensor, "row token"],
        questions: Int64[Tensor, " row"],
        attempts: Int64[Tensor, " row"],
        step: int,
    ) -> Int64[Tensor, " row"]:
        """The next token of every row."""
        best, token = self.noisy(logits, questions, attempts, step).max(1)
        check_finite(best[:, None])
        return token

    def noisy(
        self,
        logits: Float[Tensor, "row token"],
        questions: Int64[Tensor, " row"],
        attempts: Int64[Tensor, " row"],
        step: int,
    ) -> Float32[Tensor, "row token"]:
        """What is the largest for the next token: processed logits, with noise unless the temperature is 0."""
        # Behind the best one, so that no temperature makes it infinite.
        scores = logits.float() - logits.float().amax(1, keepdim=True)
        for warper in self._warpers:
            # They look at no earlier tokens.
            scores = warper(torch.empty(0, device=scores.device), scores)
        return (
            scores if self._sampling.is_greedy else add_gumbel(scores, self._sampling.seed, questions, attempts, step)
        )

    def _read(
        self, prompts: Sequence[TokenIds]
    ) -> tuple[Float[Tensor, "row token"], Int64[Tensor, "row place"], DynamicCache]:
        """Run prompts up to their end; padding is on the left."""
        n_own = [len(prompt) - self._n_shared for prompt in prompts]
        ids = torch.zeros(len(prompts), max(n_own), dtype=torch.int64, device=self._device)
        mask = torch.zeros(len(prompts), self._n_shared + max(n_own), dtype=torch.int64, device=self._device)
        mask[:, : self._n_shared] = 1
        for row, (prompt, n_tokens) in enumerate(zip(prompts, n_own, strict=True)):
            ids[row, -n_tokens:] = self._tensor(prompt[self._n_shared :])
            mask[row, -n_tokens:] = 1
        cache = DynamicCache(config=self._model.config)
        if self._n_shared:
            cache.layers = [_expanded(layer, len(prompts)) for layer in self._prefix]
        return self._run(ids, mask, cache), mask, cache

    def _run(
        self, ids: Int64[Tensor, "row token"], mask: Int64[Tensor, "row place"], cache: DynamicCache
    ) -> Float[Tensor, "row token"]:
        """Logits after the last token of every row."""
        options = dict(self._options)
        if self._has_positions:
            options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = self._model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **options)
        _layers_of(cache)
        return out.logits[:, -1]

    def _results(
        self, drawn: Int64[Tensor, "row token"], ended: Bool[Tensor, " row"], n_prompts: int
    ) -> list[list[Drawn]]:
        attempts: list[Drawn] = []
        ends = set(self._ends.tolist())
        for tokens, is_ended in zip(drawn.tolist(), ended.tolist(), strict=True):
            length = next((n for n, token in enumerate(tokens) if token in ends or token < 0), len(tokens))
            attempts.append(Drawn(tuple(tokens[:length]), is_cut=not is_ended))
        n_attempts = self._sampling.n_attempts
        return [attempts[n * n_attempts : (n + 1) * n_attempts] for n in range(n_prompts)]

    def _tensor(self, values: Any) -> Int64[Tensor, " number"]:
        return torch.from_numpy(np.asarray(values, dtype=np.int64)).to(self._device)


def check_finite(logits: Float[Tensor, "row token"]) -> None:
    """Raise `NonFiniteError` for logits of which no token can be chosen."""
    if not bool(torch.isfinite(logits).any(1).all()) or bool(torch.isnan(logits).any()):
        raise NonFiniteError(
            "the model returns NaN or infinity, so that there is no next token; try dtype='float32'",
            argument="dtype",
        )


class _GrowingLayer(DynamicLayer):
    """Keys and values with room for those to come, so that a step copies none of the others."""

    all_keys: Tensor
    all_values: Tensor
    n_tokens: int

    @classmethod
    def of(cls, layer: Any, room: int) -> _GrowingLayer:
        """A layer that is filled, with room for so many tokens more."""
        growing = cls()
        vars(growing).update(vars(layer))
        growing.n_tokens = layer.keys.shape[-2]
        growing.all_keys, growing.all_values = (pad(states, (0, 0, 0, room)) for states in (layer.keys, layer.values))
        return growing

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        start = self.n_tokens
        self.n_tokens = start + key_states.shape[-2]
        self.all_keys[:, :, start : self.n_tokens] = key_states
        self.all_values[:, :, start : self.n_tokens] = value_states
        return self._seen()

    def batch_select_indices(self, indices: Tensor) -> None:
        self.all_keys, self.all_values = self.all_keys[indices], self.all_values[indices]
        self._seen()

    def _seen(self) -> tuple[Tensor, Tensor]:
        keys, values = self.all_keys[:, :, : self.n_tokens], self.all_values[:, :, : self.n_tokens]
        # What transformers asks a layer's length.
        self.keys, self.values = keys, values
        return keys, values


def _with_room(layer: Any, n_tokens: int) -> Any:
    """A layer of a cache that so many tokens more fit into; one with a sliding window, which drops others, as it is."""
    return _GrowingLayer.of(layer, n_tokens) if type(layer) is DynamicLayer else layer


def _expanded(layer: Any, n_rows: int) -> Any:
    """A layer of the prefix for several rows; nothing is copied before tokens are added."""
    copied = copy(layer)
    copied.keys, copied.values = layer.keys.expand(n_rows, -1, -1, -1), layer.values.expand(n_rows, -1, -1, -1)
    return copied


def _layers_of(cache: DynamicCache) -> list[Any]:
    """The layers of a cache that was filled."""
    known = (DynamicLayer, DynamicSlidingWindowLayer, _GrowingLayer)
    other = next((type(layer).__name__ for layer in cache.layers if type(layer) not in known), None)
    if other is not None or not cache.layers:
        raise RequestError(
            f"this model keeps other states than keys and values ({other or 'no cache'}), which attempts cannot share; "
            "use engine='vllm', or serve it and use engine='openai'",
            argument="engine",
        )
    return cache.layers


def _warpers(sampling: Sampling) -> list[Any]:
    if sampling.is_greedy:
        return []
    warpers: list[Any] = [] if sampling.temperature == 1 else [TemperatureLogitsWarper(float(sampling.temperature))]
    if sampling.top_k is not None:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return warpers
