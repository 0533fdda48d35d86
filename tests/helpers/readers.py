"""The readers that people have without us."""

import warnings
from pathlib import Path

import numpy as np
import tensorstore
import xarray
import zarr

from activation_store import ActivationStore, StoreError


def check_other_readers(path: Path) -> None:
    """Assert that zarr-python, xarray and TensorStore read the same bits as we do."""
    store = ActivationStore.open(path)
    expected = store[:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = zarr.open(path, mode="r")
        labelled = xarray.open_zarr(path)
    driver = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / "activations")}}
    theirs = tensorstore.open(driver, read=True, open=True).result().read().result()
    for found in (plain["activations"][...], labelled.activations.values, theirs, store.to_xarray().activations.values):
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        assert np.ascontiguousarray(found).tobytes() == expected.tobytes()
    for name in ("sample", "layer", "position", *store.spec.coordinates, *store.spec.label_columns):
        ours = store.coordinate(name)
        for found in (plain[name][...], labelled[name].values, store.to_xarray()[name].values):
            assert np.array_equal(found, ours)


def check_every_store(folder: Path) -> None:
    """Check those stores below a folder that are finished and whole."""
    for journal in folder.rglob("activations/journal"):
        path = journal.parents[1]
        try:
            store = ActivationStore.open(path)
            whole = not store.verify()
        except StoreError:
            continue  # a test damaged it
        if whole:
            check_other_readers(path)
