"""The original scripts' ``.pt`` files: read in place, streamed into a store and out of one.

A ``.pt`` holds ``activations`` [sample, layer, position, feature], ``labels`` float32 [sample], ``layer_indices``,
``positions``, ``n_eoi_tokens``, ``d_model`` and ``model_name``. It is mapped, never read whole, and no pickled code in
it is run.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pandas as pd
import torch
from jaxtyping import Shaped
from torch import Tensor

from activation_store.durable import fsync_path
from activation_store.errors import InputError
from activation_store.health import examine
from activation_store.integrity import Progress
from activation_store.journal import file_hash
from activation_store.layout import balanced_shard_samples
from activation_store.metadata import is_store
from activation_store.reader import ActivationStore
from activation_store.spec import StoreSpec, library_versions
from activation_store.writer import StoreWriter

LABEL = "label"
_TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class PtActivations:
    """Activations of a ``.pt`` file, mapped; read like an `ActivationStore`."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path = path
        self._activations: Tensor = content["activations"].detach()
        labels = torch.as_tensor(content["labels"]).detach()
        # NumPy has no bfloat16, and float32 holds all of its values.
        self._labels: Tensor = labels.float() if labels.dtype == torch.bfloat16 else labels
        self.layers = tuple(int(layer) for layer in content["layer_indices"])
        self.positions = tuple(int(position) for position in content["positions"])
        self.model_name = str(content.get("model_name", ""))

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
            # torch raises half a dozen types here, for what is not a .pt, is cut short, or would run pickled code.
            raise InputError(f"{path} cannot be read as a .pt of tensors: {str(error).splitlines()[0]}") from error
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

    @property
    def journal_hash(self) -> str:
        """What tells this file from another: its content is too large to be hashed each time."""
        status = self.path.stat()
        return f"{status.st_size} bytes, modified {status.st_mtime_ns}"

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
        return pd.DataFrame({LABEL: self._labels.numpy()})

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
    temporary = path.with_name(f".{path.name}.partial")
    content = {
        "layer_indices": list(store.layers),
        "positions": list(store.positions),
        "n_eoi_tokens": len(store.positions),
        "d_model": store.n_features,
        "model_name": str(store.fingerprint.get("model", "")),
    }
    shapes = {"activations": (store.shape, _TORCH_DTYPES[store.spec.dtype]), "labels": ((len(store),), torch.float32)}
    with _removed_on_error(temporary), _reserved_tensors(temporary, content, shapes) as tensors:
        labels = store.labels[label_column or store.spec.label_columns[0]].to_numpy()
        tensors["labels"].copy_(torch.from_numpy(labels.astype(np.float32)))
        for shard in progress(range(store.spec.layout.n_shards)):
            rows = store.spec.layout.rows(shard)
            block = store[rows.start : rows.stop]
            _to_numpy(tensors["activations"])[rows.start : rows.stop] = block
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_path(path.parent)


@contextmanager
def _removed_on_error(path: Path) -> Generator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


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
    with path.open("rb+") as file:
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
    if not isinstance(activations, Tensor) or activations.ndim != 4 or activations.dtype not in _TORCH_DTYPES.values():
        raise InputError(f"{path}: activations must be a float tensor [sample, layer, position, feature]")
    if activations.untyped_storage().nbytes() < activations.numel() * activations.itemsize:
        raise InputError(f"{path}: activations of shape {list(activations.shape)} share values; save them contiguous")
    expected = (_n_labels(path, content["labels"]), *(_n_distinct(path, content, name) for name in wanted[2:]))
    if tuple(activations.shape[:3]) != expected or 0 in activations.shape:
        raise InputError(
            f"{path}: activations have shape {list(activations.shape)}, but there are {expected[0]} labels, "
            f"{expected[1]} layers and {expected[2]} positions"
        )


def _n_labels(path: Path, labels: Any) -> int:
    try:
        labels = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: labels must be numbers, one per sample ({error})") from error
    if labels.ndim != 1 or labels.is_complex():
        raise InputError(f"{path}: labels must be numbers, one per sample, not {list(labels.shape)}")
    return len(labels)


def _n_distinct(path: Path, content: dict[str, Any], name: str) -> int:
    """Length of the list of integers that labels an axis."""
    values = content[name].tolist() if isinstance(content[name], Tensor) else content[name]
    if not isinstance(values, (list, tuple)) or any(type(value) is not int for value in values):
        raise InputError(f"{path}: {name} must be a list of integers")
    if len(set(values)) < len(values):
        raise InputError(f"{path}: {name} {list(values)} names one twice: which of the two is meant cannot be known")
    return len(values)


def _to_numpy(tensor: Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
