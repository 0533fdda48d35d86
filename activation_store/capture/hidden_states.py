"""Run a decoder over batches of prompts and keep the wanted rows of its hidden states.

Layer i is ``hidden_states[i]`` of Hugging Face: the input of block i, and for the last index what the decoder returns
after its final norm. Hooks on the blocks read exactly these tensors; which modules these are is found by
`activation_store.models.structure`, and where there are none, ``output_hidden_states=True`` is used, which is slower.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from activation_store.capture.footprint import token_nbytes
from activation_store.capture.parity import PLAIN, States, Way, find_way
from activation_store.capture.prefix import SharedPrefix
from activation_store.models.info import ModelInfo
from activation_store.models.loading import LoadedDecoder, load_decoder
from activation_store.models.source import ModelSource
from activation_store.models.structure import (
    PreHook,
    Structure,
    find_structure,
    first_nonfinite_module,
    given_state,
    hooks,
)
from activation_store.prompts.prompts import TokenIds

# Enough tokens to tell a decoder's modules apart.
_TRACED_TOKENS = 8

logger = logging.getLogger(__name__)


class HiddenStates:
    """A loaded model that returns the hidden states of chosen layers at the last tokens of prompts.

    Parameters
    ----------
    loaded : LoadedDecoder
        The model.
    layers : sequence of int
        Indices into ``hidden_states``.
    positions : sequence of int
        Negative indices from the last real token.
    n_blocks, n_features : int
        Transformer blocks and hidden size.
    """

    def __init__(
        self, loaded: LoadedDecoder, layers: Sequence[int], positions: Sequence[int], n_blocks: int, n_features: int
    ) -> None:
        self.device = loaded.device
        self.attention = loaded.attention
        self._decoder = loaded.module
        self._dtype = loaded.dtype
        self._layers, self._positions = tuple(layers), tuple(positions)
        self._n_blocks = n_blocks
        self._n_features = n_features
        self._way = Way(hooked=True)
        self._copies: torch.cuda.Stream | None = None
        self.parity: dict[str, float] = {}

    @classmethod
    def load(
        cls,
        source: ModelSource,
        info: ModelInfo,
        layers: Sequence[int],
        positions: Sequence[int],
        *,
        dtype: str,
        device: torch.device,
        device_map: str | None = None,
    ) -> HiddenStates:
        """Load the weights; the other parameters are those of `activation_store.models.loading.load_decoder`."""
        loaded = load_decoder(source, info, dtype=dtype, device=device, device_map=device_map)
        return cls(loaded, layers, positions, info.n_blocks, info.n_features)

    @cached_property
    def structure(self) -> Structure:
        """Where this decoder's layers can be read; found on a few tokens that every vocabulary has."""
        with torch.inference_mode():
            token_ids = torch.arange(3, 3 + _TRACED_TOKENS, device=self.device)[None]
            structure = find_structure(self._decoder, token_ids, self._n_blocks, self._n_features)
        if structure.blocks is None:
            logger.warning("this model's blocks were not found: using output_hidden_states, which is slower")
        if structure.shift:
            logger.warning(
                "this model's hidden_states begin with the output of block 0: "
                "layer 0 is the embeddings nevertheless, and layer i the output of block i - 1"
            )
        return structure

    @property
    def n_prefix(self) -> int:
        """Tokens of the common prefix that batches reuse; 0: none."""
        return len(self._way.prefix or ())

    def token_nbytes(self, longest: int) -> int:
        """Bytes that each token of a batch takes on the device, roughly.

        Parameters
        ----------
        longest : int
            Tokens of the longest prompt.
        """
        n_bytes = token_nbytes(self._decoder, self._n_features, longest)
        hooked = self._way.hooked and self.structure.blocks is not None
        all_layers = 0 if hooked else (self._n_blocks + 1) * self._n_features * self._dtype.itemsize
        return n_bytes + all_layers

    def use_prefix(self, token_ids: TokenIds) -> int:
        """Run the tokens that prompts have in common once, and let every batch that begins with them reuse that.

        Parameters
        ----------
        token_ids : ndarray [token]
            The common prefix; empty: reuse none.

        Returns
        -------
        int
            Tokens that are reused: none where the model's cache does not hold a key and a value per token.
        """
        prefix = SharedPrefix.of(self._decoder, token_ids, self.device) if len(token_ids) else None
        self._way = replace(self._way, prefix=prefix)
        return self.n_prefix

    def check(self, prompts: Sequence[TokenIds], *, max_rows: int) -> None:
        """Compare batches of a few prompts with the same prompts run one by one through ``output_hidden_states``.

        Where they differ, what is faster than a plain batch is given up with a warning: the prefix, then the hooks.

        Parameters
        ----------
        prompts : sequence of ndarray [token]
            The first prompts of the dataset.
        max_rows : int
            Most rows of a batch.

        Raises
        ------
        ParityError
            A plain batch differs too.
        """
        found = find_way(self._run, self._ways(), prompts, self._layers, max_rows=max_rows)
        if found is None:
            return
        self._way = found.way
        self.parity = {"tolerance": found.tolerance, "largest_error": found.largest_error}
        for warning in found.warnings:
            logger.warning("%s", warning)

    def _ways(self) -> list[Way]:
        """How a batch can be run, fastest first."""
        hooked = self._way.hooked and self.structure.blocks is not None
        ways = [Way(hooked, self._way.prefix), Way(hooked), PLAIN]
        return [way for place, way in enumerate(ways) if way not in ways[:place]]

    def start(self, prompts: Sequence[TokenIds]) -> Callable[[], States]:
        """Begin to run some prompts; the parameters are those of `run_on_device`.

        Returns
        -------
        callable
            Waits, in any thread, until the hidden states are on the host, and returns them [row, layer, position,
            feature] in the model's data type; bfloat16 as that of ml_dtypes. On CUDA the next batch can be begun
            before: this one is copied on a stream of its own.
        """
        states = self.run_on_device(prompts)
        if states.device.type != "cuda":
            return lambda: to_numpy(states)
        if self._copies is None:
            self._copies = torch.cuda.Stream(states.device)
        self._copies.wait_stream(torch.cuda.current_stream(states.device))
        with torch.cuda.stream(self._copies):
            host = torch.empty(states.shape, dtype=states.dtype, pin_memory=True)
            host.copy_(states, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(self._copies)
        states.record_stream(self._copies)

        def wait() -> States:
            copied.synchronize()
            return to_numpy(host)

        return wait

    def run_on_device(self, prompts: Sequence[TokenIds]) -> Shaped[Tensor, "row layer position feature"]:
        """Hidden states of some prompts, padded on the right.

        Causal attention never looks right, and neither do convolutions and scans, so padding behind a prompt changes
        nothing and no mask is needed.

        Parameters
        ----------
        prompts : sequence of ndarray [token]
            Token ids.

        Returns
        -------
        Tensor [row, layer, position, feature]
            In the model's data type, on its device.
        """
        return self._run_alike(prompts, self._way)

    def first_nonfinite_module(self, prompt: TokenIds) -> str | None:
        """Name the first module that returns NaN or infinity on a prompt, run alone; None where all is finite."""
        with torch.inference_mode():
            return first_nonfinite_module(
                self._decoder, torch.from_numpy(prompt.astype(np.int64))[None].to(self.device)
            )

    def _run(self, prompts: Sequence[TokenIds], way: Way) -> States:
        return to_numpy(self._run_alike(prompts, way))

    def _run_alike(self, prompts: Sequence[TokenIds], way: Way) -> Shaped[Tensor, "row layer position feature"]:
        """Run prompts that must not share a batch apart from each other."""
        switch = self.structure.rope_switch
        is_long = [switch is not None and len(prompt) > switch for prompt in prompts]
        if all(is_long):
            # The prefix was run with the frequencies of short prompts.
            way = replace(way, prefix=None)
        if all(is_long) or not any(is_long):
            return self._forward(prompts, way)
        groups = [[row for row, long in enumerate(is_long) if long == which] for which in (False, True)]
        parts = [self._run_alike([prompts[row] for row in group], way) for group in groups]
        return torch.cat(parts)[torch.argsort(torch.tensor(groups[0] + groups[1]))]

    @torch.inference_mode()
    def _forward(self, prompts: Sequence[TokenIds], way: Way) -> Shaped[Tensor, "row layer position feature"]:
        prefix = way.prefix if way.prefix and way.prefix.serves(prompts, self._positions) else None
        skipped = len(prefix or ())
        n_tokens = torch.tensor([len(prompt) - skipped for prompt in prompts])
        token_ids = torch.zeros(len(prompts), int(n_tokens.max()), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            token_ids[row, : n_tokens[row]] = torch.from_numpy(prompt[skipped:].astype(np.int64))
        wanted = (n_tokens[:, None] + torch.tensor(self._positions)).to(self.device)
        cache = {"past_key_values": prefix.cache, "use_cache": True} if prefix else {"use_cache": False}
        kept = self._kept(token_ids.to(self.device), wanted, cache, hooked=way.hooked)
        # Some models (Mamba) keep the sum over their blocks in float32, whatever they compute in.
        return torch.stack([kept[layer].to(self.device, self._dtype) for layer in self._layers], dim=1)

    def _kept(
        self,
        token_ids: Int[Tensor, "row token"],
        wanted: Int[Tensor, "row position"],
        cache: dict[str, Any],
        *,
        hooked: bool,
    ) -> dict[int, Float[Tensor, "row position feature"]]:
        """Run the decoder and pick the wanted rows of each layer as it goes by."""
        kept: dict[int, Tensor] = {}
        taps = self._taps(hooked=hooked)
        rest = set(self._layers) - set(taps)
        last = max(self._layers)

        def tap(layer: int) -> PreHook:
            def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                state = given_state(args, kwargs)
                assert state is not None
                kept[layer] = _pick(state, wanted)
                if layer == last and not rest:
                    raise _EnoughError

            return keep

        try:
            with hooks([(module, tap(layer), None) for layer, module in taps.items()]):
                out = self._decoder(input_ids=token_ids, output_hidden_states=bool(rest - {self._n_blocks}), **cache)
        except _EnoughError:
            return kept  # The highest wanted layer is in: what is above it need not run.
        for layer in rest:
            is_last = layer == self._n_blocks
            state = out.last_hidden_state if is_last else out.hidden_states[layer - self.structure.shift]
            kept[layer] = _pick(state, wanted)
        return kept

    def _taps(self, *, hooked: bool) -> dict[int, nn.Module]:
        """Modules that are given a wanted layer."""
        structure = self.structure
        # Without hooks, those of the first layers that hidden_states leaves out.
        blocks = (structure.blocks or ())[: None if hooked else structure.shift]
        modules = {**dict(enumerate(blocks)), self._n_blocks: structure.readout}
        return {layer: module for layer, module in modules.items() if module and layer in self._layers}


class _EnoughError(Exception):
    """Ends a forward pass early."""


def _pick(
    hidden: Float[Tensor, "row token feature"], wanted: Int[Tensor, "row position"]
) -> Float[Tensor, "row position feature"]:
    wanted = wanted.to(hidden.device)
    return hidden[torch.arange(len(hidden), device=hidden.device)[:, None], wanted]


def to_numpy(
    states: Float[Tensor, "row layer position feature"],
) -> States:
    """Copy hidden states to the host; bfloat16 becomes that of ml_dtypes, which numpy has not."""
    states = states.cpu()
    if states.dtype == torch.bfloat16:
        return states.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return states.numpy()
