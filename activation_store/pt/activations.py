"""A ``.pt`` file of the original scripts, read in place."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from activation_store.errors import InputError, check_same_content

if TYPE_CHECKING:
    import pandas as pd

LABEL = "label"
TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class PtActivations:
    """Activations of a ``.pt`` file, mapped; read like an `ActivationStore`."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path = path
        self._activations: Tensor = content["activations"].detach()
        self._labels = _labels_of(content["labels"])
        self.layers = tuple(int(layer) for layer in content["layer_indices"])
        self.positions = tuple(int(position) for position in content["positions"])
        self.model_name = content.get("model_name") or ""

    @classmethod
    def open(cls, path: str | Path) -> PtActivations:
        """Map a ``.pt`` file.

        Raises
        ------
        InputError
            It is missing, holds pickled code, or does not have the original scripts' keys and shapes.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        try:
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:
            # torch raises half a dozen types here, with pages of advice such as to run the code in the file.
            raise InputError(f"{path} cannot be read as a .pt of tensors: {_why_unreadable(path)}") from error
        _check_content(path, content)
        return cls(path, content)

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process go its path and what should be there."""
        return _reopen, (self.path.absolute(), self.journal_hash)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        n_samples, n_layers, n_positions, n_features = self._activations.shape
        return (n_samples, n_layers, n_positions, n_features)

    @property
    def dtype(self) -> str:
        """Name of the data type."""
        return str(self._activations.dtype).removeprefix("torch.")

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """What the file says of its origin."""
        return {"model": self.model_name}

    @cached_property
    def journal_hash(self) -> str:
        """SHA-256 of the file, which tells it from another."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def questions(self) -> None:
        """Unknown: the file does not hold them."""
        return None

    @property
    def n_tokens(self) -> None:
        """Unknown: the file says nothing about its prompts."""
        return None

    @property
    def position_tokens(self) -> list[str]:
        """Empty: the file does not hold the tokens."""
        return [""] * len(self.positions)

    @property
    def n_samples(self) -> int:
        return self.shape[0]

    @property
    def n_features(self) -> int:
        return self.shape[3]

    @property
    def labels(self) -> pd.DataFrame:
        """The one label column."""
        import pandas as pd

        return pd.DataFrame({LABEL: self._labels})

    def cell(self, layer: int, position: int) -> Shaped[np.ndarray, "sample feature"]:
        """Activations of one cell [sample, feature], a copy."""
        return to_numpy(self._activations[:, self.layers.index(layer), self.positions.index(position)].clone())

    def cell_blocks(self, layer: int, position: int) -> Iterator[tuple[range, Shaped[np.ndarray, "sample feature"]]]:
        """Yield the whole cell as one block, a view."""
        values = self._activations[:, self.layers.index(layer), self.positions.index(position)]
        yield range(self.n_samples), to_numpy(values)

    def __getitem__(self, rows: slice) -> Shaped[np.ndarray, "row layer position feature"]:
        """Activations of consecutive samples, a view."""
        return to_numpy(self._activations[rows])


def _reopen(path: Path, journal_hash: str) -> PtActivations:
    """Open the same file in another process, or refuse another one."""
    activations = PtActivations.open(path)
    check_same_content(path, activations.journal_hash, journal_hash)
    return activations


def _check_content(path: Path, content: Any) -> None:
    wanted = ("activations", "labels", "layer_indices", "positions")
    missing = [name for name in wanted if not isinstance(content, dict) or name not in content]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}: not a .pt of extract_activations.py")
    activations = content["activations"]
    if not isinstance(activations, Tensor) or activations.is_nested or activations.dtype not in TORCH_DTYPES.values():
        kinds = ", ".join(TORCH_DTYPES)
        raise InputError(
            f"{path}: activations must be a tensor [sample, layer, position, feature] of {kinds}, not "
            f"{_kind(activations)}"
        )
    _check_dense(path, "activations", activations)
    if activations.ndim != 4:
        raise InputError(
            f"{path}: activations must be [sample, layer, position, feature], not of shape {list(activations.shape)}"
        )
    if 0 in activations.shape:
        raise InputError(f"{path}: activations of shape {list(activations.shape)} hold nothing; extract some rows")
    if activations.untyped_storage().nbytes() < activations.numel() * activations.itemsize:
        raise InputError(f"{path}: activations of shape {list(activations.shape)} share values; save them contiguous")
    expected = (_n_labels(path, content["labels"]), *(_n_distinct(path, content, name) for name in wanted[2:]))
    if tuple(activations.shape[:3]) != expected:
        raise InputError(
            f"{path}: activations have shape {list(activations.shape)}, but there are {expected[0]} labels, "
            f"{expected[1]} layers and {expected[2]} positions"
        )
    if not isinstance(content.get("model_name"), (str, type(None))):
        raise InputError(f"{path}: model_name must be a string, not {_kind(content['model_name'])}")


def _why_unreadable(path: Path) -> str:
    """Why torch cannot load a file without running code in it, and the remedy if there is one."""
    if not zipfile.is_zipfile(path):
        return (
            "it is truncated, older than the format of torch 1.6, or not from torch.save; save it again with torch.save"
        )
    try:
        objects = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:
        # As many types as above.
        objects = []
    if not objects:
        return "it is damaged, or was not written by torch.save"
    return (
        f"it holds objects that only code could restore ({', '.join(sorted(objects)[:3])}); save only tensors, "
        "numbers, strings and lists; convert NumPy arrays with torch.from_numpy"
    )


def _kind(value: Any) -> str:
    """What a value is, in a few words."""
    if isinstance(value, (list, tuple)) and value:
        return f"a {type(value).__name__} of {' and '.join(sorted({type(one).__name__ for one in value})[:3])}"
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.is_nested:
        return "a nested tensor"
    return f"{str(value.dtype).removeprefix('torch.')} of shape {list(value.shape)}"


def _check_dense(path: Path, name: str, tensor: Tensor) -> None:
    """Refuse tensors that do not hold a number in memory for each place."""
    for is_so, word, way_out in (
        (tensor.is_nested, "nested", "save one padded tensor"),
        (tensor.layout != torch.strided, "sparse", "save tensor.to_dense()"),
        (tensor.is_quantized, "quantized", "save tensor.dequantize()"),
        (tensor.is_meta, "on the meta device, without values", "save the values"),
    ):
        if is_so:
            raise InputError(f"{path}: {name} must be a plain tensor, and this one is {word}; {way_out}")


def _n_labels(path: Path, labels: Any) -> int:
    if isinstance(labels, Tensor):
        _check_dense(path, "labels", labels)
    try:
        numbers = _labels_of(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: labels must be numbers, one per sample, not {_kind(labels)}") from error
    if numbers.ndim != 1 or numbers.dtype.kind not in "biuf":
        raise InputError(f"{path}: labels must be numbers, one per sample, not {_kind(labels)}")
    return len(numbers)


def _labels_of(labels: Any) -> np.ndarray:
    if not isinstance(labels, Tensor):
        return np.asarray(labels)
    # NumPy has none of torch's narrower kinds, and float32 holds all of their values.
    known = labels.dtype in (torch.float64, torch.float16) or not labels.is_floating_point()
    return (labels if known else labels.float()).detach().resolve_conj().resolve_neg().numpy()


def _n_distinct(path: Path, content: dict[str, Any], name: str) -> int:
    """Length of the list of integers that labels an axis."""
    values = content[name]
    if isinstance(values, Tensor):
        _check_dense(path, name, values)
        values = values.tolist()
    if not isinstance(values, (list, tuple)) or any(type(value) is not int for value in values):
        raise InputError(f"{path}: {name} must be a list of integers")
    if any(abs(value) >= 2**31 for value in values):
        raise InputError(f"{path}: {name} {list(values)} holds numbers that no model has; use indices such as 0 or -1")
    if len(set(values)) < len(values):
        raise InputError(f"{path}: {name} {list(values)} has a value twice: it is unclear which is meant")
    return len(values)


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A tensor as an array of the same bits, bfloat16 included."""
    tensor = tensor.resolve_neg()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
