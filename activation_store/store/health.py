"""Findings about a finished store: cells from which nothing can be learned, repeated prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from activation_store.format.dtypes import as_bits
from activation_store.store.reader import ActivationStore


def examine(store: ActivationStore) -> dict[str, Any]:
    """Examine a finished store.

    Returns
    -------
    dict
        ``constant_cells``: [layer, position] of cells in which all samples have the same values;
        ``zero_cells``: those of them in which all values are 0;
        ``repeated_prompts``: samples whose prompt repeats an earlier one; null if prompts are unknown.
    """
    cells = [(layer, position) for layer in store.layers for position in store.positions]
    constant = [cell for cell in cells if store.n_samples > 1 and _is_constant(store, *cell)]
    repeated = None
    if "prompt_hash" in store.spec.coordinates:
        hashes = store.coordinate("prompt_hash")
        repeated = len(hashes) - len(np.unique(hashes))
    return {
        "constant_cells": [list(cell) for cell in constant],
        "zero_cells": [list(cell) for cell in constant if not next(store.cell_blocks(*cell))[1][0].any()],
        "repeated_prompts": repeated,
    }


def _is_constant(store: ActivationStore, layer: int, position: int) -> bool:
    """Whether all samples are equal; for most cells the first two decide."""
    first = None
    for _, block in store.cell_blocks(layer, position):
        values = as_bits(block)
        first = values[0] if first is None else first
        if (values[:2] != first).any() or (values != first).any():
            return False
    return True


def describe(health: Mapping[str, Any]) -> Iterator[str]:
    """What users should know about it, one line each."""
    zero = health.get("zero_cells", [])
    constant = [cell for cell in health.get("constant_cells", []) if cell not in zero]
    if constant:
        yield f"constant over all samples, so nothing can be learned there: {_cells(constant)}"
    if zero:
        yield f"all zero: {_cells(zero)}"
    repeated = health.get("repeated_prompts")
    if repeated:
        yield f"samples that repeat the prompt of an earlier one: {repeated}"
    if health and not (constant or zero or repeated):
        yield "no cell is constant" if repeated is None else "no cell is constant, no prompt is repeated"
    if health and repeated is None:
        yield "prompts, and whether any is repeated: unknown, the store was imported"


def _cells(cells: list[list[int]]) -> str:
    """Layers with their positions."""
    by_layer: dict[int, list[str]] = {}
    for layer, position in cells:
        by_layer.setdefault(layer, []).append(str(position))
    return "; ".join(f"layer {layer} at {', '.join(positions)}" for layer, positions in by_layer.items())
