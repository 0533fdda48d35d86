"""A model's tokenizer and weights, verified to be those of the named model."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    modeling_gguf_pytorch_utils,
)

from activation_store.errors import InputError
from activation_store.models.info import ModelInfo
from activation_store.models.source import ModelSource, load_by_transformers, read_gguf
from activation_store.models.structure import find_decoder
from activation_store.models.weights import LoadingReport, RecordedNames, check_weights, reports_held
from activation_store.prompts.tokenizer import Tokenizer


def load_tokenizer(source: ModelSource) -> Tokenizer:
    """Load the model's tokenizer."""
    if source.held is not None:
        return source.held.tokenizer
    return load_by_transformers(source, "tokenizer", AutoTokenizer.from_pretrained)


def resolve_device(device: str) -> torch.device:
    """Turn "auto" into cuda if there is one, else mps if there is one, otherwise cpu; check that the device exists.

    Raises
    ------
    InputError
        torch does not know it, or it is not available.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    there += ["mps"] if torch.backends.mps.is_available() else []
    try:
        # "meta" takes tensors and keeps no values.
        usable = torch.empty(1, device=device).device.type != "meta"
    except (RuntimeError, AssertionError, TypeError):
        usable = False
    if not usable:
        raise InputError(
            f"device={device!r} cannot be used; try {' or '.join(f'device={name!r}' for name in there)}",
            argument="device",
        )
    return torch.device(device)


def place_of(model: Any, device: str) -> torch.device:
    """Where a model in memory is.

    Raises
    ------
    InputError
        `device` is not "auto" and another one.
    """
    placed = input_device(model)
    wanted = placed if device == "auto" else resolve_device(device)
    if (wanted.type, wanted.index or 0) != (placed.type, placed.index or 0):
        raise InputError(
            f"device={device!r}: the model in memory is on {placed}; leave it out, or move the model first",
            argument="device",
        )
    return placed


@dataclass(frozen=True)
class LoadedDecoder:
    """A causal LM's weights, without its head.

    Parameters
    ----------
    module : nn.Module
        From token ids to hidden states.
    device : torch.device
        Where its inputs go and its results are gathered.
    dtype : torch.dtype
        Data type that it computes in.
    attention : str
        Implementation that transformers chose.
    """

    module: nn.Module
    device: torch.device
    dtype: torch.dtype
    attention: str


def load_model(
    source: ModelSource, info: ModelInfo, *, dtype: torch.dtype, needs_head: bool = False, **options: Any
) -> Any:
    """Load a causal LM, its head included.

    Parameters
    ----------
    source, info
        The model.
    dtype : torch.dtype
        Data type to compute in.
    needs_head : bool
        Whether the head, too, must be from the checkpoint: without, transformers draws it at random.
    **options
        More for ``from_pretrained``.

    Raises
    ------
    InputError
        The weights cannot be loaded, or some of the decoder's are not from the checkpoint.
    """
    if source.gguf_file:
        options["quantization_config"] = GgufConfig(dequantize=True)
    load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
    names: list[RecordedNames] = []
    with reports_held() as show_report, _gguf_names_recorded(names):
        # The configuration is handed on: reading it out of a GGUF file again takes seconds.
        model, found = load_by_transformers(
            *(source, "weights", load),
            **{"config": info.config, "dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True},
            **options,
        )
    read_gguf.cache_clear()
    left_out = [name for one in names for name in one.absent]
    report = LoadingReport(
        found["missing_keys"],
        found["mismatched_keys"],
        [*found["unexpected_keys"], *dict.fromkeys(left_out)],
        source.location,
    )
    check_weights(source.name, model, model if needs_head else find_decoder(model), report)
    show_report()
    return model


@contextmanager
def _gguf_names_recorded(names: list[RecordedNames]) -> Generator[None]:
    """Record which tensors of a GGUF file transformers leaves out; its own report does not name them."""
    original = modeling_gguf_pytorch_utils.get_gguf_hf_weights_map

    def recorded(*args: Any, **kwargs: Any) -> RecordedNames:
        names.append(RecordedNames(original(*args, **kwargs)))
        return names[-1]

    modeling_gguf_pytorch_utils.get_gguf_hf_weights_map = recorded
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.get_gguf_hf_weights_map = original


def load_decoder(
    source: ModelSource, info: ModelInfo, *, dtype: str, device: torch.device, device_map: str | None = None
) -> LoadedDecoder:
    """Load the weights without the head; parameters and errors are those of `load_causal_lm`."""
    model = load_causal_lm(source, info, dtype=dtype, device=device, device_map=device_map, needs_head=False)
    attention = str(getattr(model.config, "_attn_implementation", "unknown"))
    return LoadedDecoder(find_decoder(model), input_device(model), getattr(torch, dtype), attention)


def load_causal_lm(
    source: ModelSource,
    info: ModelInfo,
    *,
    dtype: str,
    device: torch.device,
    device_map: str | None = None,
    needs_head: bool = True,
) -> Any:
    """Load a model that can run: in its place, without gradients.

    Parameters
    ----------
    source, info
        The model. One in memory is given as it is.
    dtype : str
        Data type to compute in.
    device : torch.device
        Where to run; with `device_map`, not used.
    device_map : str, optional
        Spread the model over the devices there are: "auto" or another value that accelerate knows.
    needs_head : bool
        As of `load_model`.

    Raises
    ------
    InputError
        As `load_model`.
    """
    if source.held is not None:
        return source.held.model
    options: dict[str, Any] = {}
    quantized = getattr(info.config, "quantization_config", None) is not None
    if device_map or quantized:
        # Quantized weights are put in their place as they are loaded; many kinds cannot be moved afterwards.
        options["device_map"] = device_map or {"": device}
    model = load_model(source, info, dtype=getattr(torch, dtype), needs_head=needs_head, **options)
    if not options:
        model.to(device)
    return model.eval().requires_grad_(False)


def empty_decoder(source: ModelSource, info: ModelInfo, dtype: str) -> nn.Module:
    """Make the decoder without weights, to see how large it is."""
    if source.held is not None:
        return find_decoder(source.held.model)
    make: Callable[..., Any] = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        model = make(info.config, dtype=getattr(torch, dtype), trust_remote_code=source.trust_remote_code)
    return find_decoder(model)


def input_device(model: Any) -> torch.device:
    """Where a model takes its token ids."""
    embedding = model.get_input_embeddings()
    # Weights that accelerate keeps elsewhere are on no device until their module runs.
    hook = getattr(embedding, "_hf_hook", None)
    placed = getattr(hook, "execution_device", None)
    return torch.device(placed) if placed is not None else next(embedding.parameters()).device
