"""The tokens that all prompts begin with, run once: their keys and values, to be read by every batch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from activation_store.prompts.prompts import TokenIds

logger = logging.getLogger(__name__)


class _ReadOnly:
    """Gives the prefix's keys and values with the batch's own behind them, and keeps none of the latter.

    So the cache is the same for every batch, its one row is expanded without a copy, and a batch's keys and values are
    freed as soon as its block has used them.
    """

    keys: Any
    values: Any

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        return self._behind(self.keys, key_states), self._behind(self.values, value_states)

    @staticmethod
    def _behind(prefix: Tensor, batch: Tensor) -> Tensor:
        return torch.cat([prefix.expand(len(batch), -1, -1, -1), batch], dim=-2)


class _ReadOnlyLayer(_ReadOnly, DynamicLayer):
    pass


class _ReadOnlySlidingLayer(_ReadOnly, DynamicSlidingWindowLayer):
    pass


# Layers whose whole state is a key and a value per token. Others (convolutions, scans, compressed keys) change in ways
# of their own when tokens are added: no prefix is reused there.
_READ_ONLY: dict[type, Any] = {DynamicLayer: _ReadOnlyLayer, DynamicSlidingWindowLayer: _ReadOnlySlidingLayer}


@dataclass(frozen=True)
class SharedPrefix:
    """A prefix and its cache.

    Parameters
    ----------
    token_ids : ndarray [token]
        The prefix.
    cache : Cache
        Its keys and values, read-only.
    """

    token_ids: TokenIds
    cache: Cache

    @classmethod
    @torch.inference_mode()
    def of(cls, decoder: nn.Module, token_ids: TokenIds, device: torch.device) -> SharedPrefix | None:
        """Run the prefix; None where the model's cache is not one of keys and values per token, or does not work."""
        ids = torch.from_numpy(token_ids.astype(np.int64))[None].to(device)
        try:
            cache = getattr(decoder(input_ids=ids, use_cache=True), "past_key_values", None)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # Models are programs: what they raise is theirs to choose.
            logger.warning("this model fails with a cache, so no prefix is reused: %s", error)
            return None
        if type(cache) is not DynamicCache or not all(_is_filled(layer, len(token_ids)) for layer in cache.layers):
            return None
        cache.layers = [_read_only(layer) for layer in cache.layers]
        return cls(token_ids, cache)

    def __len__(self) -> int:
        return len(self.token_ids)

    def serves(self, prompts: Sequence[TokenIds], positions: Sequence[int]) -> bool:
        """Whether all of these prompts begin with the prefix and have their wanted tokens behind it."""
        return all(
            len(prompt) + min(positions) >= len(self) and np.array_equal(prompt[: len(self)], self.token_ids)
            for prompt in prompts
        )


def _is_filled(layer: Any, n_tokens: int) -> bool:
    return type(layer) in _READ_ONLY and layer.is_initialized and layer.get_seq_length() == n_tokens


def _read_only(layer: Any) -> Any:
    cls = _READ_ONLY[type(layer)]
    copied = cls.__new__(cls)
    copied.__dict__.update(layer.__dict__)
    return copied
