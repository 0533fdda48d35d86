"""Stores written by earlier versions, one set for every format version: read for ever, never written again."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from activation_store import ActivationStore
from activation_store.format.dtypes import numpy_dtype
from activation_store.format.spec import FORMAT_VERSION, StoreSpec
from activation_store.store.writer import StoreWriter
from tests.helpers.readers import check_other_readers
from tests.helpers.stores import DTYPES, same_bits, tree

GOLDEN = Path(__file__).parents[2] / "golden"
SHAPE = (5, 3, 2, 4)
LAYERS, POSITIONS = (0, 3, 12), (-2, -1)


def values(dtype):
    """Multiples of 1/4 that every stored data type holds exactly."""
    return ((np.arange(np.prod(SHAPE)) * 37 % 251 - 125) / 4).reshape(SHAPE).astype(numpy_dtype(dtype))


def beside():
    return {
        "n_tokens": np.array([9, 12, 7, 30, 8], dtype=np.int32),
        "token_id": np.array([[5, 6]] * 5, dtype=np.int32),
        "token": np.array([["<|im_end|>", "\n"]] * 5, dtype=object),
        "prompt_hash": np.array([2**63 + 1, 2, 3, 4, 2**64 - 1], dtype=np.uint64),
        "question": np.array(["What is 2 + 3?", "", "日本の首都はどこ", "a\nb", "😀"], dtype=object),
        "success_rate": np.array([0.0, 0.25, 1 / 3, 1.0, 0.5]),
        "right": np.array([False, False, True, True, False]),
    }


def write(folder):
    """How the stores of the newest format were made; `python -m tests.activation_store.store.test_golden FOLDER`."""
    for dtype in DTYPES:
        spec = StoreSpec(
            n_samples=SHAPE[0],
            layers=LAYERS,
            positions=POSITIONS,
            n_features=SHAPE[3],
            dtype=dtype,
            shard_samples=2,
            coordinates=("n_tokens", "token_id", "token", "prompt_hash", "question"),
            label_columns=("success_rate", "right"),
            fingerprint={"model": "golden", "layers": list(LAYERS)},
            provenance={"versions": {"probesweep": "0.1.0"}},
        )
        version = f"v{FORMAT_VERSION}"
        unfinished = {f"{version}-bfloat16-unfinished.zarr": 3} if dtype == "bfloat16" else {}
        for name, n_rows in ({f"{version}-{dtype}.zarr": 5} | unfinished).items():
            with StoreWriter.create(folder / name, spec, beside()) as writer:
                writer.add(np.arange(n_rows), values(dtype)[:n_rows])
                if n_rows == SHAPE[0]:
                    writer.finish(HEALTH)


HEALTH = {"constant_cells": [], "zero_cells": [], "repeated_prompts": 0}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_stores_of_every_format(dtype, version):
    path = GOLDEN / f"v{version}-{dtype}.zarr"
    store = ActivationStore.open(path)
    assert (store.shape, store.layers, store.positions) == (SHAPE, LAYERS, POSITIONS)
    assert store.attrs["probesweep_format"] == version
    assert (store.spec.places, store.spec.site) == (("-2", "-1"), "residual")
    assert store.health == (HEALTH if version > 1 else {})
    assert store.fingerprint["model"] == "golden"
    same_bits(store[:], values(dtype))
    assert list(store.labels) == ["success_rate", "right"]
    for name, expected in beside().items():
        found = store.coordinate(name)
        if expected.dtype == object:
            assert found.tolist() == expected.tolist()
        else:
            same_bits(found, expected)
    assert store.verify() == []
    check_other_readers(path)


@pytest.mark.parametrize("version", [1, 2])
def test_an_unfinished_store_of_every_format_is_finished(version, tmp_path):
    dtype = "bfloat16"
    shutil.copytree(GOLDEN / f"v{version}-{dtype}-unfinished.zarr", tmp_path / "s.zarr")
    with StoreWriter.resume(tmp_path / "s.zarr", {"model": "golden", "layers": list(LAYERS)}) as writer:
        assert writer.pending_shards == [1, 2]
        writer.add(np.arange(2, 5), values(dtype)[2:])
        if version > 1:
            writer.finish(HEALTH)
    assert tree(tmp_path / "s.zarr") == tree(GOLDEN / f"v{version}-{dtype}.zarr")


def test_the_coordinate_of_places_is_text_along_the_positions():
    store = ActivationStore.open(GOLDEN / "v2-float32.zarr")
    assert store.coordinate("place").tolist() == ["-2", "-1"]
    assert store.to_xarray()["activations"].coords["place"].dims == ("position",)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
