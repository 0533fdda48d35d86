"""Whether the weights that were loaded are those of the model that was named."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers.utils.hub import cached_file, get_checkpoint_shard_files
from transformers.utils.peft_utils import find_adapter_config_file

from activation_store.errors import InputError

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
# Masks and tables that older versions of transformers stored with the weights and now compute.
_TABLES = re.compile(r"(^|\.)(inv_freq|position_ids|masked_bias|causal_mask)$")
# Some of them have the name of a bias; a bias has one dimension.
_MASKS, _MASK_DIMENSIONS = re.compile(r"(^|\.)(attn|attention)(\.attention)?\.bias$"), (2, 3, 4)
# What peft adds to weights and to their names; it is applied by peft alone.
_ADAPTERS = re.compile(r"^base_model\.|\.lora_|lora_embedding|\.modules_to_save\.")
# Names that wrappers put in front of a whole model's: DataParallel, torch.compile.
_WRAPPERS = re.compile(r"^(module|_orig_mod)\.")
# As transformers looks for weights.
_WHOLE = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}
# What the tensors of a decoder are called in a GGUF file.
_GGUF_DECODER = ("blk.", "token_embd", "position_embd", "output_norm", "rope_")
_N_SHOWN = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadingReport:
    """How a checkpoint's weights went into a model, by their names.

    Parameters
    ----------
    missing : collection of str
        Of the model, not in the checkpoint; transformers has drawn them at random.
    mismatched : collection of tuple of str, shape and shape
        Of another shape in the checkpoint (first) than in the model (second); drawn at random as well.
    unused : collection of str
        In the checkpoint, not of the model.
    location : str
        Hub id or folder of the checkpoint.
    """

    missing: Collection[str]
    mismatched: Collection[tuple[str, Sequence[int], Sequence[int]]]
    unused: Collection[str]
    location: str


def check_files(name: str, location: str) -> None:
    """Refuse a model whose files are not one whole checkpoint, before any weights are read.

    Parameters
    ----------
    name : str
        As the user gave it.
    location : str
        Hub id or folder.

    Raises
    ------
    InputError
        There is an adapter next to the weights, or shards without their index, or two checkpoints in one folder.
    """
    folder = Path(location)
    adapters = [file for file in _ADAPTER_FILES if (folder / file).exists()]
    if adapters or (not folder.is_dir() and _has_adapter(location)):
        raise InputError(
            f"model {name!r} has an adapter next to its weights ({', '.join(adapters) or _ADAPTER_FILES[0]}), which is "
            "not applied: merge it into the weights (peft: merge_and_unload, save_pretrained) and give the merged "
            "model, or give the base model"
        )
    for kind, whole_name in _WHOLE.items():
        shards = sorted(file.name for file in folder.glob(f"*-of-*.{kind}"))
        whole = (folder / whole_name).exists()
        index = [file.name for file in folder.glob(f"*.{kind}.index.json")]
        if shards and not index and not whole:
            raise InputError(
                f"model {name!r} has shards ({_shown(shards)}) without their index (*.{kind}.index.json), so they "
                "may be incomplete: download the index and all shards"
            )
        if index and whole:
            raise InputError(
                f"model {name!r} has two sets of weights, {whole_name} and those of {index[0]}; move one of them away"
            )
        # transformers takes what is found first, and looks at no other kind.
        if whole or index:
            return


def _has_adapter(location: str) -> bool:
    """Whether a repository of the hub holds an adapter; one that there cannot be is named with its configuration."""
    try:
        return find_adapter_config_file(location) is not None
    except (OSError, ValueError):
        return False


def check_weights(name: str, model: nn.Module, decoder: nn.Module, report: LoadingReport) -> None:
    """Refuse a decoder whose weights are not all those of its checkpoint; warn of what its hidden states do not need.

    Parameters
    ----------
    name : str
        As the user gave it.
    model : nn.Module
        As it was loaded.
    decoder : nn.Module
        What of it is run.
    report : LoadingReport

    Raises
    ------
    InputError
        Weights of the decoder are missing, of another shape, or left out of it.
    """
    prefix = next(path for path, module in model.named_modules() if module is decoder)
    parts = {path for path, _ in [*decoder.named_children(), *decoder.named_parameters(recurse=False)]}

    def is_run(key: str) -> bool:
        """Whether a weight is the decoder's; checkpoints of a decoder alone leave its prefix out."""
        inner = key.removeprefix(f"{prefix}.") if prefix else key
        return inner.split(".")[0] in parts or key.startswith(_GGUF_DECODER)

    _refuse_missing(name, [key for key in report.missing if is_run(key)], report.unused)
    _refuse_mismatched(name, [entry for entry in report.mismatched if is_run(entry[0])])
    _refuse_adapters(name, [key for key in report.unused if _ADAPTERS.search(key)])
    _refuse_copies(name, [key for key in report.unused if is_run(_WRAPPERS.sub("", key)) and not is_run(key)])
    _refuse_unused(name, [key for key in report.unused if is_run(key) and not _is_table(key, report.location)])
    absent = sorted({*report.missing, *(key for key, *_ in report.mismatched)})
    if absent:
        logger.warning("the checkpoint of model %r lacks %s; hidden states do not need it", name, _shown(absent))
    if report.unused:
        logger.warning(
            "the checkpoint of model %r has %s, which this model does not use", name, _counted(sorted(report.unused))
        )


def _refuse_missing(name: str, missing: Sequence[str], unused: Collection[str]) -> None:
    if not missing:
        return
    # A wrapper (DataParallel, torch.compile, a trainer) puts its own name in front of every key.
    front = next((other.removesuffix(key) for other in unused for key in missing if other.endswith(f".{key}")), None)
    way_out = (
        f"its keys begin with {front!r}: save it without"
        if front
        else "it is a part of the model, or of another one: download or convert it again"
    )
    raise InputError(f"the checkpoint of model {name!r} lacks {_counted(sorted(missing))}; {way_out}")


def _refuse_mismatched(name: str, mismatched: Sequence[tuple[str, Sequence[int], Sequence[int]]]) -> None:
    if mismatched:
        key, found, expected = min(mismatched)
        raise InputError(
            f"the checkpoint of model {name!r} has {_counted([entry[0] for entry in sorted(mismatched)])} of another "
            f"shape than its configuration says ({key}: {list(found)}, not {list(expected)}); give weights and "
            "config.json of one model"
        )


def _refuse_adapters(name: str, unused: Sequence[str]) -> None:
    if unused:
        raise InputError(
            f"the checkpoint of model {name!r} has {_counted(sorted(unused))} of an adapter, which is not applied: "
            "merge it into the weights (peft: merge_and_unload, save_pretrained) and give the merged model"
        )


def _refuse_copies(name: str, unused: Sequence[str]) -> None:
    if unused:
        raise InputError(
            f"the checkpoint of model {name!r} has weights of the decoder twice, the second time as "
            f"{_counted(sorted(unused))}; it is unclear which to use: keep one set"
        )


def _is_table(key: str, location: str) -> bool:
    """Whether transformers computes a stored tensor itself."""
    return bool(_TABLES.search(key) or (_MASKS.search(key) and _n_dimensions(key, location) in _MASK_DIMENSIONS))


def _n_dimensions(key: str, location: str) -> int | None:
    """Of a tensor of a checkpoint; None where it is not there. transformers may have put a prefix before its name."""
    for kind in _WHOLE:
        for file in _checkpoint_files(location, kind):
            shapes = _safetensors_shapes(file) if kind == "safetensors" else _pickle_shapes(file)
            for name, shape in shapes.items():
                if key == name or key.endswith(f".{name}"):
                    return len(shape)
    return None


def _checkpoint_files(location: str, kind: str) -> list[str]:
    quietly: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
    whole = cached_file(location, _WHOLE[kind], **quietly)
    if whole is not None:
        return [whole]
    index = cached_file(location, f"{_WHOLE[kind]}.index.json", **quietly)
    return [] if index is None else get_checkpoint_shard_files(location, index)[0] or []


def _safetensors_shapes(file: str) -> dict[str, Sequence[int]]:
    with safe_open(file, framework="pt") as content:
        return {name: content.get_slice(name).get_shape() for name in content.keys()}  # noqa: SIM118 - no mapping


def _pickle_shapes(file: str) -> dict[str, Sequence[int]]:
    content = torch.load(file, map_location="meta", weights_only=True)
    return {name: value.shape for name, value in content.items() if isinstance(value, torch.Tensor)}


def _refuse_unused(name: str, unused: Sequence[str]) -> None:
    if unused:
        raise InputError(
            f"the checkpoint of model {name!r} has {_counted(sorted(unused))} of the decoder that transformers does "
            "not use with this configuration, so the hidden states would be another model's; give weights and "
            "configuration of one model, or the model in another format"
        )


@contextmanager
def reports_held() -> Generator[Callable[[], None]]:
    """Keep transformers' table of missing and unused weights back: where `check_weights` refuses, a line says it.

    Where loading fails, the table is shown, as what is raised refers to it.

    Yields
    ------
    callable
        Shows the table; for when the weights are accepted.
    """
    held: list[logging.LogRecord] = []

    def hold(record: logging.LogRecord) -> bool:
        is_report = "LOAD REPORT" in record.getMessage()
        if is_report:
            held.append(record)
        return not is_report

    source = logging.getLogger("transformers.modeling_utils")

    def show() -> None:
        for record in held:
            source.handle(record)

    source.addFilter(hold)
    try:
        yield show
    except BaseException:
        source.removeFilter(hold)
        show()
        raise
    finally:
        source.removeFilter(hold)


class RecordedNames(dict[str, Any]):
    """Names of a GGUF file's tensors and where transformers puts them; records what it looks up in vain.

    Attributes
    ----------
    absent : list of str
        Tensors that are in the file and that transformers leaves out without a word.
    """

    def __init__(self, names: dict[str, Any]) -> None:
        super().__init__(names)
        self.absent: list[str] = []

    def __contains__(self, name: object) -> bool:
        is_known = super().__contains__(name)
        if isinstance(name, str) and not is_known:
            self.absent.append(name)
        return is_known


def _counted(keys: Sequence[str]) -> str:
    return f"{len(keys)} weight{'s' * (len(keys) > 1)} ({_shown(keys)})"


def _shown(keys: Sequence[str]) -> str:
    more = f", ... and {len(keys) - _N_SHOWN} more" if len(keys) > _N_SHOWN else ""
    return ", ".join(keys[:_N_SHOWN]) + more
