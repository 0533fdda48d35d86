"""Description of a store as text for a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from activation_store.format.spec import LAYER_CONVENTION, POSITION_CONVENTION
from activation_store.store.health import describe
from activation_store.store.reader import ActivationStore

_NORM_ROWS = 200
_CHUNK_ROWS = 16
_SAMPLES = 3
# Lists of rows can be long.
_MAX_LINE = 400


def inspect(store: ActivationStore) -> str:
    """Describe a store, finished or not: axes, provenance, norms by layer, tokens at every position.

    Raises
    ------
    StoreError
        The parts that are read are damaged.
    """
    health = "\n".join(f"  {line}" for line in describe(store.health))
    origin = "\n".join(["origin", *_lines(store.attrs)])
    sections = [_axes(store), origin, health and f"health\n{health}", _norms(store), _tokens(store)]
    return "\n\n".join(section for section in sections if section)


def describe_store(store: ActivationStore) -> dict[str, Any]:
    """What `inspect` says about axes and origin, ready for JSON."""
    return {
        "path": str(store.path),
        "format_version": store.spec.version,
        "shape": dict(zip(store.dims, store.shape, strict=True)),
        "layers": list(store.layers),
        "positions": list(store.positions),
        "position_tokens": store.position_tokens,
        "dtype": str(store.dtype),
        "n_committed": store.n_committed,
        "labels": list(store.labels),
        "label_classes": {name: classes.to_json() for name, classes in store.spec.label_classes.items()},
        "fingerprint": dict(store.fingerprint),
        "provenance": dict(store.attrs["provenance"]),
        "health": dict(store.health),
    }


def _axes(store: ActivationStore) -> str:
    layout = store.spec.layout
    axes = ", ".join(f"{length} {axis}s" for axis, length in zip(store.dims, store.shape, strict=True))
    shards = f"{layout.n_shards} shards of {layout.shard_samples} samples, {layout.shard_nbytes / 2**20:.1f} MiB each"
    return (
        f"{store.path}: store of format {store.spec.version}\n"
        f"  shape      {axes}\n"
        f"  dtype      {store.spec.dtype}\n"
        f"  size       {layout.store_nbytes / 2**20:.1f} MiB: {shards}\n"
        f"  committed  {store.n_committed} of {store.n_samples} samples\n"
        f"  layers     {', '.join(map(str, store.layers))}\n"
        f"             {LAYER_CONVENTION}\n"
        f"  positions  {', '.join(map(str, store.positions))}\n"
        f"             {POSITION_CONVENTION}\n\n"
        f"labels\n{_labels(store)}"
    )


def _labels(store: ActivationStore) -> str:
    """Means and ranges of labels of numbers, the number of rows of each class of labels of words."""
    labels = store.labels
    numbers = labels[[name for name in labels if name not in store.spec.label_classes]]
    lines = []
    if len(numbers.columns):
        lines.append(numbers.astype(float).agg(["mean", "min", "max"]).T.to_string(float_format="{:.4g}".format))
    for name, classes in store.spec.label_classes.items():
        counts = labels[name].value_counts()
        lines.append(f"{name}: {', '.join(f'{counts[one]} {one!r}' for one in classes.names)}")
    return "\n".join(lines) or "none"


def _lines(attributes: Mapping[str, Any]) -> Iterator[str]:
    """Fingerprint and provenance, one line per entry."""
    entries = {**attributes["fingerprint"], **attributes["provenance"]}
    for name, value in entries.items():
        if name in ("layers", "positions", "dtype"):  # stand above
            continue
        line = f"  {name:24} {value if isinstance(value, str) else json.dumps(value)}".replace("\n", "\\n")
        yield line if len(line) <= _MAX_LINE else f"{line[:_MAX_LINE]} ..."


def _norms(store: ActivationStore) -> str:
    """Mean Euclidean norm of the activations of every cell, over the first committed shard."""
    import pandas as pd

    rows = store.first_committed_rows
    if rows is None:
        return "norms: nothing is committed yet"
    rows = rows[:_NORM_ROWS]
    norms = np.zeros(store.shape[1:3])
    for start in rows[::_CHUNK_ROWS]:
        block = store[start : min(start + _CHUNK_ROWS, rows.stop)].astype(np.float64)
        norms += np.linalg.norm(block, axis=3).sum(axis=0) / len(rows)
    table = pd.DataFrame(norms, index=[f"layer {layer}" for layer in store.layers], columns=list(store.positions))
    title = f"mean Euclidean norm over rows {rows.start}-{rows.stop - 1}, by layer and position"
    return f"{title}\n{table.to_string(float_format='{:.4g}'.format)}"


def _tokens(store: ActivationStore) -> str:
    """Decoded tokens at every position of the first samples."""
    import pandas as pd

    if "token" not in store.spec.coordinates:
        return "tokens: unknown, the store was imported"
    tokens = store.coordinate("token")[:_SAMPLES]
    table = pd.DataFrame(
        [[repr(token) for token in row] for row in tokens],
        index=[f"row {row}" for row in range(len(tokens))],
        columns=list(store.positions),
    )
    return f"token at each position\n{table.to_string()}"
