"""The model that all contenders share, and what of it each of them uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from activation_store.capture.hidden_states import HiddenStates
from activation_store.extraction.arguments import parse_layers
from activation_store.models.info import read_model_info
from activation_store.models.loading import LoadedDecoder, load_model, load_tokenizer, resolve_device
from activation_store.models.source import ModelSource
from activation_store.models.structure import find_decoder
from activation_store.prompts.encoding import encode_prompts
from activation_store.prompts.prompts import PromptFormat, Prompts
from activation_store.prompts.tokenizer import Tokenizer


@dataclass(frozen=True)
class Subject:
    """A causal language model, its head included, and its tokenizer."""

    model: Any
    tokenizer: Tokenizer
    n_blocks: int
    n_features: int
    max_length: int | None
    device: torch.device

    @classmethod
    def load(cls, name: str, device: str = "cpu") -> Subject:
        """Load a model by the name that ``--model`` takes, in float32."""
        source = ModelSource.parse(name)
        info = read_model_info(source)
        model = load_model(source, info, dtype=torch.float32)
        where = resolve_device(device)
        model.to(where).eval().requires_grad_(False)
        return cls(model, load_tokenizer(source), info.n_blocks, info.n_features, info.max_length, where)

    def save(self, folder: Path) -> None:
        """Write model and tokenizer as a folder that `load` takes: other processes load it faster than a GGUF file."""
        tokenizer: Any = self.tokenizer
        self.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.model.dtype

    @property
    def decoder(self) -> nn.Module:
        """The model without its head."""
        return find_decoder(self.model)

    def states(self, positions: Sequence[int], layers: str = "all") -> HiddenStates:
        """What `extract` runs for ``--layers`` and these stored positions, over these same weights."""
        loaded = LoadedDecoder(self.decoder, self.device, self.dtype, str(self.model.config._attn_implementation))
        return HiddenStates(loaded, self.layers(layers), positions, self.n_blocks, self.n_features)

    def layers(self, layers: str = "all") -> tuple[int, ...]:
        """Indices into ``hidden_states`` that ``--layers`` means."""
        return parse_layers(layers, self.n_blocks)

    def encode(self, questions: Sequence[str]) -> Prompts:
        """Put questions through the chat template, and that through the tokenizer."""
        return encode_prompts(self.tokenizer, questions, PromptFormat(max_length=self.max_length))
