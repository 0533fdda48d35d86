"""What is known about a model before its weights are loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
)
from transformers.utils.hub import cached_file

from activation_store.errors import InputError
from activation_store.models.source import ModelSource, load_by_transformers
from activation_store.models.structure import find_decoder
from activation_store.models.weights import check_files

_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.gguf")


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model before its weights are loaded.

    Parameters
    ----------
    n_blocks, n_features : int
        Transformer blocks; hidden size.
    n_embeddings : int or None
        Rows of the token embeddings, if the configuration says.
    max_length : int or None
        Most tokens of a prompt, if the model has such a limit.
    dtype : str
        Data type of its weights, float32 if the checkpoint does not say.
    revision : str or None
        Commit of the hub repository.
    weights : str
        What identifies the weights: the hub's commit, or a SHA-256 over configuration and weight files.
    config : PreTrainedConfig
        As loaded.
    """

    n_blocks: int
    n_features: int
    n_embeddings: int | None
    max_length: int | None
    dtype: str
    revision: str | None
    weights: str
    config: Any

    def most_tokens(self, wanted: int | None) -> int | None:
        """Most tokens of a prompt where so many are wanted; None where neither says.

        Raises
        ------
        InputError
            The model takes fewer.
        """
        if wanted is not None and self.max_length is not None and wanted > self.max_length:
            raise InputError(
                f"max_length={wanted}: the model takes {self.max_length} tokens at most", argument="max_length"
            )
        return self.max_length if wanted is None else wanted


def read_model_info(source: ModelSource) -> ModelInfo:
    """Read a model's configuration and identify its weights; loads no weights.

    Raises
    ------
    InputError
        There is no such model, it cannot be reached, or its files are not one complete checkpoint.
    """
    if source.held is not None:
        config = source.held.model.config
    else:
        if not source.gguf_file:
            check_files(source.name, source.location)
        config = load_by_transformers(source, "configuration", AutoConfig.from_pretrained)
    text = config.get_text_config(decoder=True)
    dtype = getattr(text, "dtype", None) or getattr(config, "dtype", None) or torch.float32
    if source.held is not None:
        dtype = source.held.model.dtype
        revision, weights = None, _identify_parameters(source.held.model)
    else:
        revision, weights = _identify_weights(source, config.to_json_string())
    return ModelInfo(
        n_blocks=int(text.num_hidden_layers),
        n_features=int(text.hidden_size),
        n_embeddings=getattr(text, "vocab_size", None),
        max_length=_longest_prompt(config, text),
        dtype=str(dtype).removeprefix("torch."),
        revision=revision,
        weights=weights,
        config=config,
    )


def _longest_prompt(config: Any, text: Any) -> int | None:
    """Most tokens that positions are there for, None where the configuration has no limit."""
    limit = getattr(text, "max_position_embeddings", None)
    is_rotary = getattr(text, "rope_parameters", None) is not None
    if limit is None or is_rotary or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return limit
    make: Callable[..., nn.Module] = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        model = make(config)
    # RoBERTa-like models number positions from the one after padding's: the rows before it belong to no token.
    unused = [
        table.padding_idx + 1
        for name, table in model.named_modules()
        if isinstance(table, nn.Embedding) and "position" in name and table.num_embeddings == limit
        if table.padding_idx is not None
    ]
    return limit - max(unused, default=0)


def _identify_parameters(model: Any) -> str:
    """SHA-256 over the parameters and buffers of a model in memory, without its head."""
    digest = hashlib.sha256(model.config.to_json_string().encode())
    tensors = sorted(find_decoder(model).state_dict().items())
    for name, tensor in tqdm(tensors, unit="tensor", desc="weights' hash", delay=2):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"in memory, sha256 {digest.hexdigest()}"


def _identify_weights(source: ModelSource, config_json: str) -> tuple[str | None, str]:
    folder = Path(source.location)
    if not folder.is_dir():
        config_file = cached_file(source.location, "config.json")
        revision = Path(config_file).parent.name if config_file else None
        return revision, f"hub commit {revision}"
    patterns = (source.gguf_file,) if source.gguf_file else _WEIGHT_FILES
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    digest = hashlib.sha256(config_json.encode())
    for file in tqdm(files, unit="file", desc="weights' hash", delay=2):
        with file.open("rb") as stream:
            digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return None, f"sha256 {digest.hexdigest()}"
