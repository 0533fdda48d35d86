"""Run a decoder over batches of prompts and keep the wanted rows of its hidden states.

Layer i is ``hidden_states[i]`` of Hugging Face: the input of block i, and for the last index what the decoder returns
after its final norm. Hooks on the blocks read exactly these tensors; which modules these are is found by
`activation_store.models.structure`, and where there are none, ``output_hidden_states=True`` is used, which is slower.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Shaped
from torch import Tensor, nn

from activation_store.capture.footprint import token_nbytes
from activation_store.capture.parity import MOST_ROUNDING, ROUNDING_MARGIN, choose_rows, layer_errors, tolerance
from activation_store.capture.prefix import SharedPrefix
from activation_store.errors import ParityError
from activation_store.format.dtypes import numpy_dtype
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


@dataclass(frozen=True)
class _Way:
    """How a batch is run: by hooks or ``output_hidden_states``, the common prefix reused or not."""

    hooked: bool
    prefix: SharedPrefix | None = None


class HiddenStates:
    """A loaded model that returns the hidden states of chosen layers at the last tokens of prompts.

    Parameters
    ----------
    loaded : LoadedDecoder
        The model.
    layers : sequence of int
        Indices into ``hidden_states``.
    n_blocks, n_features : int
        Transformer blocks and hidden size.
    """

    def __init__(self, loaded: LoadedDecoder, layers: Sequence[int], n_blocks: int, n_features: int) -> None:
        self.device = loaded.device
        self.attention = loaded.attention
        self._decoder = loaded.module
        self._dtype = loaded.dtype
        self._layers = tuple(layers)
        self._n_blocks = n_blocks
        self._n_features = n_features
        self._way = _Way(hooked=True)
        self._copies: torch.cuda.Stream | None = None
        self.parity: dict[str, float] = {}

    @classmethod
    def load(
        cls,
        source: ModelSource,
        info: ModelInfo,
        layers: Sequence[int],
        *,
        dtype: str,
        device: torch.device,
        device_map: str | None = None,
    ) -> HiddenStates:
        """Load the weights; the parameters are those of `activation_store.models.loading.load_decoder`."""
        loaded = load_decoder(source, info, dtype=dtype, device=device, device_map=device_map)
        return cls(loaded, layers, info.n_blocks, info.n_features)

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

    def check(self, prompts: Sequence[TokenIds], positions: Sequence[int], *, max_rows: int) -> None:
        """Compare batches of a few prompts with the same prompts run one by one through ``output_hidden_states``.

        Where they differ, what is faster than a plain batch is given up with a warning: the prefix, then the hooks.

        Parameters
        ----------
        prompts : sequence of ndarray [token]
            The first prompts of the dataset.
        positions : sequence of int
            Negative indices from the last real token.
        max_rows : int
            Most rows of a batch.

        Raises
        ------
        ParityError
            A plain batch differs too.
        """
        chosen = [prompts[row] for row in choose_rows(prompts)]
        alone = [self._run([prompt], positions, _Way(hooked=False)) for prompt in chosen]
        # Prompts that break the model are for the extraction to report, with their rows.
        finite = [row for row, block in enumerate(alone) if np.isfinite(block.astype(np.float32)).all()]
        if not finite:
            return
        expected = np.concatenate([alone[row] for row in finite])
        batches = [[chosen[row] for row in finite[i : i + max_rows]] for i in range(0, len(finite), max_rows)]
        allowed = np.full(len(self._layers), tolerance(expected.dtype))
        given_up: list[str] = []
        for way in self._ways():
            try:
                found = [self._run(batch, positions, way) for batch in batches]
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # Models are programs: what they raise is theirs to choose.
                if not way.hooked:
                    raise
                what = "reusing the prompts' common prefix" if way.prefix else "reading layers with hooks"
                given_up.append(f"{what} fails ({error}): continuing without it")
                continue
            errors = layer_errors(np.concatenate(found), expected)
            if (errors > allowed).any():
                allowed = np.maximum(allowed, self._rounding(batches, positions, expected))
            if (errors <= allowed).all():
                self._way = way
                for warning in given_up:
                    logger.warning("%s", warning)
                self._report(errors, allowed)
                return
            worst = int((errors / allowed).argmax())
            size = f"at layer {self._layers[worst]} by {errors[worst]:.2g} of its size"
            given_up.append(_wrong(way, size))
        raise ParityError(given_up[-1])

    def _rounding(
        self,
        batches: Sequence[Sequence[TokenIds]],
        positions: Sequence[int],
        expected: Shaped[np.ndarray, "row layer position feature"],
    ) -> Float64[np.ndarray, " layer"]:
        """Error of each layer that rounding explains: that of batches of one and the same prompt, with a margin."""
        plain = _Way(hooked=False)
        copies = [self._run([prompt] * len(batch), positions, plain)[:1] for batch in batches for prompt in batch]
        errors = layer_errors(np.concatenate(copies), expected)
        return np.where(np.isfinite(errors), np.minimum(ROUNDING_MARGIN * errors, MOST_ROUNDING), 0.0)

    def _report(self, errors: Float64[np.ndarray, " layer"], allowed: Float64[np.ndarray, " layer"]) -> None:
        """Keep what the check found; say so where more than the usual was let pass."""
        usual = tolerance(numpy_dtype(str(self._dtype).removeprefix("torch.")))
        worst = int(errors.argmax())
        self.parity = {"tolerance": float(allowed[worst]), "largest_error": float(errors[worst])}
        if errors[worst] > usual:
            logger.warning(
                "layer %d of a prompt in a batch differs by %.2g of its size from the same prompt alone; copies of one "
                "prompt differ as much, so this counts as rounding",
                self._layers[worst],
                errors[worst],
            )

    def _ways(self) -> list[_Way]:
        """How a batch can be run, fastest first."""
        hooked = self._way.hooked and self.structure.blocks is not None
        ways = [_Way(hooked, self._way.prefix), _Way(hooked), _Way(hooked=False)]
        return [way for place, way in enumerate(ways) if way not in ways[:place]]

    def start(
        self, prompts: Sequence[TokenIds], positions: Sequence[int]
    ) -> Callable[[], Shaped[np.ndarray, "row layer position feature"]]:
        """Begin to run some prompts; the parameters are those of `run_on_device`.

        Returns
        -------
        callable
            Waits, in any thread, until the hidden states are on the host, and returns them [row, layer, position,
            feature] in the model's data type; bfloat16 as that of ml_dtypes. On CUDA the next batch can be begun
            before: this one is copied on a stream of its own.
        """
        block = self.run_on_device(prompts, positions)
        if block.device.type != "cuda":
            return lambda: to_numpy(block)
        if self._copies is None:
            self._copies = torch.cuda.Stream(block.device)
        self._copies.wait_stream(torch.cuda.current_stream(block.device))
        with torch.cuda.stream(self._copies):
            host = torch.empty(block.shape, dtype=block.dtype, pin_memory=True)
            host.copy_(block, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(self._copies)
        block.record_stream(self._copies)

        def wait() -> Shaped[np.ndarray, "row layer position feature"]:
            copied.synchronize()
            return to_numpy(host)

        return wait

    def run_on_device(
        self, prompts: Sequence[TokenIds], positions: Sequence[int]
    ) -> Shaped[Tensor, "row layer position feature"]:
        """Hidden states of some prompts, padded on the right.

        Causal attention never looks right, and neither do convolutions and scans, so padding behind a prompt changes
        nothing and no mask is needed.

        Parameters
        ----------
        prompts : sequence of ndarray [token]
            Token ids.
        positions : sequence of int
            Negative indices from the last real token.

        Returns
        -------
        Tensor [row, layer, position, feature]
            In the model's data type, on its device.
        """
        return self._run_alike(prompts, positions, self._way)

    def first_nonfinite_module(self, prompt: TokenIds) -> str | None:
        """Name the first module that returns NaN or infinity on a prompt, run alone; None where all is finite."""
        with torch.inference_mode():
            return first_nonfinite_module(
                self._decoder, torch.from_numpy(prompt.astype(np.int64))[None].to(self.device)
            )

    def _run(
        self, prompts: Sequence[TokenIds], positions: Sequence[int], way: _Way
    ) -> Shaped[np.ndarray, "row layer position feature"]:
        return to_numpy(self._run_alike(prompts, positions, way))

    def _run_alike(
        self, prompts: Sequence[TokenIds], positions: Sequence[int], way: _Way
    ) -> Shaped[Tensor, "row layer position feature"]:
        """Run prompts that must not share a batch apart from each other."""
        switch = self.structure.rope_switch
        is_long = [switch is not None and len(prompt) > switch for prompt in prompts]
        if all(is_long):
            # The prefix was run with the frequencies of short prompts.
            way = replace(way, prefix=None)
        if all(is_long) or not any(is_long):
            return self._forward(prompts, positions, way)
        groups = [[row for row, long in enumerate(is_long) if long == which] for which in (False, True)]
        parts = [self._run_alike([prompts[row] for row in group], positions, way) for group in groups]
        return torch.cat(parts)[torch.argsort(torch.tensor(groups[0] + groups[1]))]

    @torch.inference_mode()
    def _forward(
        self, prompts: Sequence[TokenIds], positions: Sequence[int], way: _Way
    ) -> Shaped[Tensor, "row layer position feature"]:
        prefix = way.prefix if way.prefix and way.prefix.serves(prompts, positions) else None
        skipped = len(prefix or ())
        n_tokens = torch.tensor([len(prompt) - skipped for prompt in prompts])
        token_ids = torch.zeros(len(prompts), int(n_tokens.max()), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            token_ids[row, : n_tokens[row]] = torch.from_numpy(prompt[skipped:].astype(np.int64))
        wanted = (n_tokens[:, None] + torch.tensor(tuple(positions))).to(self.device)
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


def _wrong(way: _Way, size: str) -> str:
    """Say that a way to run batches returns wrong values, and what follows."""
    if way.prefix:
        return f"reusing the prompts' common prefix changes the values {size}: the prefix is not reused"
    if way.hooked:
        return f"hooks change the values {size}: using output_hidden_states, which is slower"
    return (
        f"prompts in a batch give different values than one at a time, {size}, more than rounding; "
        "try --batch_size 1 or --dtype float32"
    )


class _EnoughError(Exception):
    """Ends a forward pass early."""


def _pick(
    hidden: Float[Tensor, "row token feature"], wanted: Int[Tensor, "row position"]
) -> Float[Tensor, "row position feature"]:
    wanted = wanted.to(hidden.device)
    return hidden[torch.arange(len(hidden), device=hidden.device)[:, None], wanted]


def to_numpy(
    block: Float[Tensor, "row layer position feature"],
) -> Shaped[np.ndarray, "row layer position feature"]:
    """Copy a block to the host; bfloat16 becomes that of ml_dtypes, which numpy has not."""
    block = block.cpu()
    if block.dtype == torch.bfloat16:
        return block.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return block.numpy()
