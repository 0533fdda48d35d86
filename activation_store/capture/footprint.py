"""What a device can take: memory of weights, of each token that is run, what is free, and tokens that keep it busy."""

from __future__ import annotations

from typing import Any

import psutil
import torch
from torch import nn

# Alive at once while a block runs: residual, norm in float32, queries, keys, values and their rotations; then the two
# projections of a gated MLP, its activation and their product.
_STATES_PER_TOKEN = 8
_WIDEST_PER_TOKEN = 4
# Norms, rotations and scans widen 16 bits.
_VALUE_NBYTES = 4
# Of attention scores that are written out: themselves, their softmax in float32, and that in the model's data type.
_SCORES_NBYTES = 4 + 4 + 4
# Measured: on two cores, larger batches only gain padding and leave the caches. A GPU takes far more to be busy.
_TOKENS_PER_THREAD = 256
_TOKENS_OF_A_GPU = 65536


def enough_tokens(device: torch.device) -> int:
    """Tokens of a batch that keep a device busy: more are not run faster."""
    return _TOKENS_PER_THREAD * torch.get_num_threads() if device.type == "cpu" else _TOKENS_OF_A_GPU


def weights_nbytes(decoder: nn.Module) -> int:
    """Bytes of a decoder's parameters and buffers."""
    tensors = [*decoder.parameters(), *decoder.buffers()]
    return sum(tensor.nbytes for tensor in tensors)


def token_nbytes(decoder: nn.Module, n_features: int, longest: int) -> int:
    """Bytes that each token of a batch takes while one block runs, roughly: half, to twice as many for rare blocks.

    Parameters
    ----------
    decoder : nn.Module
        From token ids to hidden states.
    n_features : int
        Hidden size.
    longest : int
        Tokens of the longest prompt.
    """
    # Not of quantized weights, which are packed into shapes of their own.
    embeddings = {id(module.weight) for module in decoder.modules() if isinstance(module, nn.Embedding)}
    floating = [weight for weight in decoder.parameters() if weight.ndim > 1 and weight.is_floating_point()]
    matrices = [weight for weight in floating if id(weight) not in embeddings]
    linear = [module for module in decoder.modules() if isinstance(module, nn.Linear)]
    widths = [width for module in linear for width in (module.in_features, module.out_features)]
    widest = max([n_features, *widths, *(max(weight.shape[-2:]) for weight in matrices)])
    n_bytes = (_STATES_PER_TOKEN * n_features + _WIDEST_PER_TOKEN * widest) * _VALUE_NBYTES
    config: Any = getattr(decoder, "config", None)
    if getattr(config, "_attn_implementation", None) == "eager":
        n_bytes += getattr(config.get_text_config(decoder=True), "num_attention_heads", 1) * longest * _SCORES_NBYTES
    return n_bytes


def free_nbytes(device: torch.device) -> int:
    """Bytes of memory that a device has free."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
