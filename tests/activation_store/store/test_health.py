"""Constant cells and repeated prompts."""

import numpy as np
import pytest
import torch

from activation_store import ActivationStore
from activation_store.pt.convert import import_pt
from activation_store.store.describe import inspect
from activation_store.store.health import describe, examine
from activation_store.store.writer import StoreWriter
from tests.helpers.stores import make_beside, make_spec, make_values


def write(path, values, hashes, dtype="float32"):
    spec = make_spec(len(values), dtype=dtype)
    beside = make_beside(len(values)) | {"prompt_hash": np.array(hashes, dtype=np.uint64)}
    with StoreWriter.create(path, spec, beside) as writer:
        writer.add(np.arange(len(values)), values)
        writer.finish(examine(ActivationStore.open(path)))
        writer.finish(examine(ActivationStore.open(path)))  # adds nothing
    return ActivationStore.open(path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_constant_and_zero_cells_and_repeated_prompts(dtype, tmp_path):
    values = make_values(make_spec(dtype=dtype))
    values[:, 0, 1] = values[3, 0, 1]
    values[:, 2, 0] = 0
    values[:10, 1, 1] = values[0, 1, 1]  # another value in the last sample only
    store = write(tmp_path / "s.zarr", values, [1, 2, 3, 1, 2, 1, 7, 8, 9, 10, 11], dtype)
    assert store.health == {
        "constant_cells": [[0, -1], [5, -2]],
        "zero_cells": [[5, -2]],
        "repeated_prompts": 3,
    }
    assert list(describe(store.health)) == [
        "constant over all samples, so nothing can be learned there: layer 0 at -1",
        "all zero: layer 5 at -2",
        "samples that repeat the prompt of an earlier one: 3",
    ]
    journal = (tmp_path / "s.zarr/activations/journal/finished").read_bytes()
    assert journal.count(b"\n") == 1 + 3 + 1


def test_a_store_without_anything_to_tell(tmp_path):
    store = write(tmp_path / "s.zarr", make_values(make_spec()), range(11))
    assert list(describe(store.health)) == ["no cell is constant, no prompt is repeated"]
    assert list(describe({})) == []


def test_prompts_that_are_not_known_are_not_called_unique(tmp_path):
    torch.save(
        {"activations": torch.rand(4, 2, 1, 3), "labels": torch.rand(4), "layer_indices": [0, 1], "positions": [-1]},
        tmp_path / "t.pt",
    )
    unknown = "prompts, and whether any is repeated: unknown, the store was imported"
    store = import_pt(tmp_path / "t.pt", tmp_path / "t.zarr")
    assert list(describe(store.health)) == ["no cell is constant", unknown]
    assert "repeated: unknown" in inspect(store)
    constant = {"constant_cells": [[0, -1]], "zero_cells": [], "repeated_prompts": None}
    assert list(describe(constant))[1:] == [unknown]


def test_one_sample_is_not_called_constant(tmp_path):
    assert write(tmp_path / "s.zarr", make_values(make_spec(1)), [1]).health["constant_cells"] == []


def test_an_unfinished_store_has_none(tmp_path):
    with StoreWriter.create(tmp_path / "s.zarr", make_spec(), make_beside(11)):
        assert ActivationStore.open(tmp_path / "s.zarr").health == {}
