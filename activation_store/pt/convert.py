"""The original scripts' ``.pt`` files: read in place, streamed into a store and out of one.

A ``.pt`` holds ``activations`` [sample, layer, position, feature], ``labels`` float32 [sample], ``layer_indices``,
``positions``, ``n_eoi_tokens``, ``d_model`` and ``model_name``. It is mapped, never read whole, and no pickled code in
it is run.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import zipfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pandas as pd
import torch
from jaxtyping import Shaped
from torch import Tensor

from activation_store.errors import InputError
from activation_store.files.durable import draft_of, naming
from activation_store.format.dtypes import as_bits
from activation_store.format.journal import file_hash
from activation_store.format.layout import balanced_shard_samples
from activation_store.format.spec import StoreSpec, library_versions
from activation_store.store.documents import is_store
from activation_store.store.health import examine
from activation_store.store.integrity import Progress
from activation_store.store.reader import ActivationStore
from activation_store.store.writer import StoreWriter

LABEL = "label"
_TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


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
        return pd.DataFrame({LABEL: self._labels})

    def cell(self, layer: int, position: int) -> Shaped[np.ndarray, "sample feature"]:
        """Activations of one cell [sample, feature], a copy."""
        return _to_numpy(self._activations[:, self.layers.index(layer), self.positions.index(position)].clone())

    def cell_blocks(self, layer: int, position: int) -> Iterator[tuple[range, Shaped[np.ndarray, "sample feature"]]]:
        """Yield the whole cell as one block, a view."""
        values = self._activations[:, self.layers.index(layer), self.positions.index(position)]
        yield range(self.n_samples), _to_numpy(values)

    def __getitem__(self, rows: slice) -> Shaped[np.ndarray, "row layer position feature"]:
        """Activations of consecutive samples, a view."""
        return _to_numpy(self._activations[rows])


def open_activations(path: str | Path) -> ActivationStore | PtActivations:
    """Open a finished store, or a ``.pt`` file of the original scripts.

    Raises
    ------
    InputError
        There is neither, or the store is unfinished.
    """
    if Path(path).suffix == ".pt":
        return PtActivations.open(path)
    store = ActivationStore.open(path)
    store.require_complete()
    return store


def import_pt(
    source: str | Path, path: str | Path, *, shard_samples: int | None = None, progress: Progress = iter
) -> ActivationStore:
    """Write a store from a ``.pt`` file, shard by shard. What the file does not say (tokens, prompts) is left out.

    The same call again takes up an interrupted import.

    Raises
    ------
    InputError
        The file cannot be used, or something else is at `path`.
    FingerprintMismatchError
        `path` holds a store of another file.
    """
    activations, path = PtActivations.open(source), Path(path)
    dtype = activations.dtype
    n_samples, n_layers, n_positions, n_features = activations.shape
    itemsize = _TORCH_DTYPES[dtype].itemsize
    size = balanced_shard_samples(n_samples, n_layers * n_positions * n_features * itemsize)
    labels = activations.labels[LABEL].to_numpy()
    spec = StoreSpec(
        n_samples=n_samples,
        layers=activations.layers,
        positions=activations.positions,
        n_features=n_features,
        dtype=dtype,
        shard_samples=min(shard_samples or size, n_samples),
        coordinates=(),
        label_columns=(LABEL,),
        fingerprint={
            "model": activations.model_name,
            "imported": Path(source).name,
            "content": activations.journal_hash,
            "labels": file_hash(labels.tobytes()),
            "layers": list(activations.layers),
            "positions": list(activations.positions),
            "dtype": dtype,
            "n_samples": n_samples,
        },
        provenance={"imported_from": str(source), "versions": library_versions()},
    )
    writer = (
        StoreWriter.resume(path, spec.fingerprint)
        if is_store(path)
        else StoreWriter.create(path, spec, {LABEL: labels})
    )
    with writer:
        for shard in progress(writer.pending_shards):
            rows = writer.spec.layout.rows(shard)
            writer.add(np.arange(rows.start, rows.stop), activations[rows.start : rows.stop])
        writer.finish(examine(ActivationStore.open(path)))
    return ActivationStore.open(path)


def export_pt(
    store: ActivationStore, path: str | Path, *, label_column: str | None = None, progress: Progress = iter
) -> None:
    """Write a finished store as a ``.pt`` of the original schema, one shard in memory at a time.

    Space for the tensors is reserved in the file first; then they are mapped and filled.

    Parameters
    ----------
    store : ActivationStore
        Finished.
    path : str or Path
        Target; appears whole or not at all.
    label_column : str, optional
        Which labels to write; the first column by default.
    progress : callable
        Wraps the numbers of the shards while they are copied, such as `tqdm`.

    Raises
    ------
    MissingShardError
        The store is unfinished.
    """
    store.require_complete()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes = {"activations": (store.shape, _TORCH_DTYPES[store.spec.dtype]), "labels": ((len(store),), torch.float32)}
    with draft_of(path) as draft, _reserved_tensors(draft, _about(store), shapes) as tensors:
        tensors["labels"].copy_(torch.from_numpy(_exported_labels(store, label_column)))
        for shard in progress(range(store.spec.layout.n_shards)):
            rows = store.spec.layout.rows(shard)
            block = store[rows.start : rows.stop]
            _to_numpy(tensors["activations"])[rows.start : rows.stop] = block


def is_exported(
    store: ActivationStore, path: str | Path, *, label_column: str | None = None, progress: Progress = iter
) -> bool:
    """Whether a file holds what `export_pt` would write there, value by value; parameters as there."""
    path, about, layout = Path(path), _about(store), store.spec.layout
    if not path.is_file():
        return False
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        activations, labels = (content.pop(name) for name in ("activations", "labels"))
        expected = torch.from_numpy(_exported_labels(store, label_column))
        alike = content == about and (activations.dtype, activations.shape) == (
            _TORCH_DTYPES[store.spec.dtype],
            store.shape,
        )
        # Not torch.equal, to which nan differs from nan, and -0 is 0.
        alike = alike and labels.dtype == expected.dtype and labels.numpy().tobytes() == expected.numpy().tobytes()
        values = as_bits(_to_numpy(activations))
    except Exception:  # Whatever torch or a strange content raises: it is not what would be written.
        return False
    return alike and all(
        np.array_equal(values[rows.start : rows.stop], as_bits(store[rows.start : rows.stop]))
        for rows in map(layout.rows, progress(range(layout.n_shards)))
    )


def _about(store: ActivationStore) -> dict[str, Any]:
    """What the original schema holds beside the tensors."""
    return {
        "layer_indices": list(store.layers),
        "positions": list(store.positions),
        "n_eoi_tokens": len(store.positions),
        "d_model": store.n_features,
        "model_name": str(store.fingerprint.get("model", "")),
    }


def _exported_labels(store: ActivationStore, label_column: str | None) -> Shaped[np.ndarray, " sample"]:
    return store.labels[label_column or store.spec.label_columns[0]].to_numpy().astype(np.float32)


@contextmanager
def _reserved_tensors(
    path: Path, content: dict[str, Any], shapes: dict[str, tuple[tuple[int, ...], torch.dtype]]
) -> Generator[dict[str, Tensor]]:
    """Write a ``.pt`` with room for tensors, and hand these out mapped for writing."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fakes = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save({**fakes, **content}, path)
    # A mapped file with holes ends the process, without a word, where the disk is full.
    with naming(path), path.open("rb+") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        mapped = torch.load(path, mmap=True, weights_only=True)
    yield {name: mapped[name] for name in shapes}


def _check_content(path: Path, content: Any) -> None:
    wanted = ("activations", "labels", "layer_indices", "positions")
    missing = [name for name in wanted if not isinstance(content, dict) or name not in content]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}: not a .pt of extract_activations.py")
    activations = content["activations"]
    if not isinstance(activations, Tensor) or activations.is_nested or activations.dtype not in _TORCH_DTYPES.values():
        kinds = ", ".join(_TORCH_DTYPES)
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
        raise InputError(f"{path}: model_name must be a text, not {_kind(content['model_name'])}")


def _why_unreadable(path: Path) -> str:
    """Why torch does not load a file without running code in it; the way out where there is one."""
    if not zipfile.is_zipfile(path):
        return (
            "it is cut short, older than the format of torch 1.6, or none of torch.save; save it again with torch.save"
        )
    try:
        objects = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:
        # As many types as above.
        objects = []
    if not objects:
        return "it is damaged, or was not written by torch.save"
    return (
        f"it holds objects that only code could restore ({', '.join(sorted(objects)[:3])}); save tensors, numbers, "
        "texts and lists alone, NumPy's arrays by way of torch.from_numpy"
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
        raise InputError(f"{path}: {name} {list(values)} holds numbers that no model has; use places such as 0 or -1")
    if len(set(values)) < len(values):
        raise InputError(f"{path}: {name} {list(values)} names one twice: which of the two is meant cannot be known")
    return len(values)


def _to_numpy(tensor: Tensor) -> np.ndarray:
    tensor = tensor.resolve_neg()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
