"""The description of a store says what is in it."""

import re
from dataclasses import replace

import numpy as np
import pytest

from activation_store import ActivationStore
from activation_store.pt.convert import export_pt, import_pt
from activation_store.store.describe import inspect
from activation_store.store.writer import StoreWriter
from tests.helpers.stores import LAYERS, make_beside, make_spec, make_values, write_store


def norms(text):
    return {
        int(layer): [float(value) for value in values.split()]
        for layer, values in re.findall(r"^layer (\d+) +(.*)$", text, re.MULTILINE)
    }


@pytest.mark.slow
def test_finished_store(tmp_path):
    spec = make_spec()
    values = make_values(spec)
    write_store(tmp_path / "s.zarr", spec, values)
    text = inspect(ActivationStore.open(tmp_path / "s.zarr"))
    for part in (
        "11 samples, 3 layers, 2 positions, 7 features", "float32", "11 of 11 samples", "0 = embeddings",
        "-1 = last", "model                    m", "3 shards of 4 samples", "rows 0-3", "'<a>'", "' é😀'",
    ):  # fmt: skip
        assert part in text
    found = norms(text)
    expected = np.linalg.norm(values[:4].astype(np.float64), axis=3).mean(axis=0)
    assert list(found) == list(LAYERS)
    np.testing.assert_allclose([found[layer] for layer in LAYERS], expected, rtol=1e-3)


@pytest.mark.slow
def test_unfinished_and_imported_stores(tmp_path):
    spec = make_spec()
    values = make_values(spec)
    with StoreWriter.create(tmp_path / "s.zarr", spec, make_beside(11)) as writer:
        assert "nothing is committed yet" in inspect(ActivationStore.open(tmp_path / "s.zarr"))
        writer.add(np.arange(8, 11), values[8:])
    text = inspect(ActivationStore.open(tmp_path / "s.zarr"))
    assert "3 of 11 samples" in text
    assert "rows 8-10" in text
    write_store(tmp_path / "t.zarr", spec, values)
    export_pt(ActivationStore.open(tmp_path / "t.zarr"), tmp_path / "t.pt")
    assert "tokens: unknown" in inspect(import_pt(tmp_path / "t.pt", tmp_path / "u.zarr"))


def test_labels_that_are_truth_values_or_none(tmp_path):
    spec = replace(make_spec(), label_columns=("is right",))
    write_store(tmp_path / "s.zarr", spec, make_values(spec))
    assert re.search(r"is right +0\.5455 +0 +1", inspect(ActivationStore.open(tmp_path / "s.zarr")))
    spec = replace(make_spec(), label_columns=())
    write_store(tmp_path / "t.zarr", spec, make_values(spec))
    assert "labels\nnone" in inspect(ActivationStore.open(tmp_path / "t.zarr"))
