"""Small stores of known values."""

from pathlib import Path

import numpy as np

from activation_store.format.spec import COORDINATES, FORMAT_VERSION, StoreSpec
from activation_store.store.writer import StoreWriter

LAYERS = (0, 2, 5)
POSITIONS = (-2, -1)
N_FEATURES = 7


def make_spec(
    n_samples: int = 11, *, dtype: str = "float32", shard_samples: int = 4, version: int = FORMAT_VERSION, **fingerprint
) -> StoreSpec:
    return StoreSpec(
        n_samples=n_samples,
        layers=LAYERS,
        positions=POSITIONS,
        n_features=N_FEATURES,
        dtype=dtype,
        shard_samples=shard_samples,
        coordinates=COORDINATES,
        label_columns=("success_rate", "is right"),
        fingerprint={"model": "m", "dataset": "d", **fingerprint},
        provenance={},
        version=version,
    )


def make_values(spec: StoreSpec) -> np.ndarray:
    """[sample, layer, position, feature], every value another one."""
    return np.random.default_rng(0).standard_normal(spec.shape).astype(spec.numpy_dtype)


def make_beside(n_samples: int) -> dict[str, np.ndarray]:
    """Coordinates and labels."""
    return {
        "n_tokens": np.arange(5, 5 + n_samples, dtype=np.int32),
        "token_id": np.arange(2 * n_samples, dtype=np.int32).reshape(n_samples, 2),
        "token": np.array([["<a>", " é😀"]] * n_samples, dtype=object),
        "prompt_hash": np.arange(n_samples, dtype=np.uint64) + 2**63,
        "question": np.array([f"question {row} é😀" for row in range(n_samples)], dtype=object),
        "success_rate": np.linspace(0, 1, n_samples),
        "is right": np.arange(n_samples) % 2 == 0,
    }


HEALTH = {"constant_cells": [], "zero_cells": [], "repeated_prompts": 0}


def write_store(
    path: Path, spec: StoreSpec, values: np.ndarray, order: np.ndarray | None = None, *, finish: bool = False
) -> None:
    with StoreWriter.create(path, spec, make_beside(spec.n_samples)) as writer:
        rows = np.arange(spec.n_samples) if order is None else order
        for part in np.array_split(rows, 3):
            writer.add(part, values[part])
        if finish:
            writer.finish(HEALTH)


def uncommit(path: Path, shard: int) -> None:
    """Take the record of a shard out of the journal of an unfinished store."""
    journal = path / "activations/journal"
    if journal.is_dir():
        (journal / str(shard)).unlink()
    else:
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(line for line in lines if b'{"shard":%d,' % shard not in line))


DTYPES = ["float32", "float16", "bfloat16"]


def tree(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def same_bits(found, expected):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert np.ascontiguousarray(found).tobytes() == np.ascontiguousarray(expected).tobytes()


def damage(path, offset, xor=1):
    data = bytearray(path.read_bytes())
    data[offset] ^= xor
    path.write_bytes(data)
