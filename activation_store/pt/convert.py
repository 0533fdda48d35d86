"""The original scripts' ``.pt`` files: read in place, streamed into a store and out of one.

A ``.pt`` holds ``activations`` [sample, layer, position, feature], ``labels`` float32 [sample], ``layer_indices``,
``positions``, ``n_eoi_tokens``, ``d_model`` and ``model_name``. It is mapped, never read whole, and no pickled code in
it is run.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Collection, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from activation_store.errors import InputError
from activation_store.files.durable import draft_of, naming_file
from activation_store.files.storage import locate
from activation_store.format.dtypes import as_bits
from activation_store.format.journal import file_hash
from activation_store.format.layout import balanced_shard_samples
from activation_store.format.spec import StoreSpec
from activation_store.pt.activations import LABEL, TORCH_DTYPES, PtActivations, to_numpy
from activation_store.store.documents import is_store
from activation_store.store.health import examine
from activation_store.store.integrity import Progress
from activation_store.store.provenance import library_versions
from activation_store.store.reader import ActivationStore
from activation_store.store.writer import StoreWriter


def import_pt(
    source: str | Path, path: str | Path, *, shard_samples: int | None = None, progress: Progress = iter
) -> ActivationStore:
    """Write a store from a ``.pt`` file, shard by shard. What the file does not say (tokens, prompts) is left out.

    The same call again takes up an interrupted import.

    Parameters
    ----------
    source : str or Path
        The file.
    path : str or Path
        Folder of the store to write, or its address in an object store.
    shard_samples : int, optional
        Samples per shard file; by default shards of up to 256 MiB.
    progress : callable
        Wraps the shard numbers while they are written, such as `tqdm`.

    Raises
    ------
    InputError
        The file cannot be used, or something else is at `path`.
    FingerprintMismatchError
        `path` holds a store of another file.
    """
    activations, place = PtActivations.open(source), locate(path)
    dtype = activations.dtype
    n_samples, n_layers, n_positions, n_features = activations.shape
    itemsize = TORCH_DTYPES[dtype].itemsize
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
        StoreWriter.resume(place, spec.fingerprint)
        if is_store(place)
        else StoreWriter.create(place, spec, {LABEL: labels})
    )
    with writer:
        for shard in progress(writer.pending_shards):
            rows = writer.spec.layout.rows(shard)
            writer.add(np.arange(rows.start, rows.stop), activations[rows.start : rows.stop])
        writer.finish(examine(ActivationStore.open(place)))
    return ActivationStore.open(place)


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
    shapes = {"activations": (store.shape, TORCH_DTYPES[store.spec.dtype]), "labels": ((len(store),), torch.float32)}
    with draft_of(path) as draft, _reserved_tensors(draft, _about(store), shapes) as tensors:
        tensors["labels"].copy_(torch.from_numpy(_exported_labels(store, label_column)))
        for shard in progress(range(store.spec.layout.n_shards)):
            rows = store.spec.layout.rows(shard)
            block = store[rows.start : rows.stop]
            to_numpy(tensors["activations"])[rows.start : rows.stop] = block


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
            TORCH_DTYPES[store.spec.dtype],
            store.shape,
        )
        # Not torch.equal, to which nan differs from nan, and -0 is 0.
        alike = alike and labels.dtype == expected.dtype and labels.numpy().tobytes() == expected.numpy().tobytes()
        values = as_bits(to_numpy(activations))
    except Exception:  # Whatever torch or a strange content raises: it is not what would be written.
        return False
    return alike and all(
        np.array_equal(values[rows.start : rows.stop], as_bits(store[rows.start : rows.stop]))
        for rows in map(layout.rows, progress(range(layout.n_shards)))
    )


def _about(store: ActivationStore) -> dict[str, Any]:
    """What the original schema contains besides the tensors."""
    return {
        "layer_indices": list(store.layers),
        "positions": list(store.positions),
        "n_eoi_tokens": len(store.positions),
        "d_model": store.n_features,
        "model_name": str(store.fingerprint.get("model", "")),
    }


def _exported_labels(store: ActivationStore, label_column: str | None) -> Shaped[np.ndarray, " sample"]:
    name = label_column or store.spec.label_columns[0]
    check_exportable(name, store.spec.label_classes)
    return store.coordinate(name).astype(np.float32)


def check_exportable(label: str, classes: Collection[str]) -> None:
    """Refuse labels that are words: files of two splits would number their classes each in its own way.

    Parameters
    ----------
    label : str
    classes : collection of str
        Labels that are words.

    Raises
    ------
    InputError
        It is one of them.
    """
    if label in classes:
        raise InputError(
            f"label {label!r} is words, which a .pt cannot hold; export a label of numbers (label_column=...)",
            argument="label_column",
        )


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
    with naming_file(path), path.open("rb+") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        mapped = torch.load(path, mmap=True, weights_only=True)
    yield {name: mapped[name] for name in shapes}
