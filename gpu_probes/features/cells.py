"""Where the features come from: one (layer, position) cell at a time."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped

from gpu_probes.errors import CellError
from gpu_probes.terms import Cell


@runtime_checkable
class CellSource(Protocol):
    """Anything that hands out cells, layer by layer and position by position, in blocks of consecutive samples."""

    @property
    def layers(self) -> Sequence[int | str]:
        """Indices into the model's ``hidden_states``."""
        ...

    @property
    def positions(self) -> Sequence[int | str]:
        """Negative token positions, -1 = the last real token."""
        ...

    @property
    def n_samples(self) -> int:
        """Rows of every cell."""
        ...

    @property
    def n_features(self) -> int:
        """Columns of every cell."""
        ...

    def cell_blocks(self, layer: Any, position: Any) -> Iterator[tuple[range, Shaped[np.ndarray, "row feature"]]]:
        """Iterate over all samples in order: their indices and features (float16, bfloat16, float32 or float64).

        Blocks may be views of anything; they are only read, several cells at a time, from several threads.
        """
        ...


class ArrayCellSource:
    """A `CellSource` over an array in memory.

    Parameters
    ----------
    array : ``[sample, layer, position, feature]``
    layers : layer numbers, default 0, 1, ...
    positions : position numbers, default ..., -2, -1

    Raises
    ------
    CellError
        When the array does not have four axes, or an axis and its numbers differ in length.
    """

    def __init__(
        self,
        array: Shaped[np.ndarray, "..."],
        layers: Sequence[int] | None = None,
        positions: Sequence[int] | None = None,
    ) -> None:
        if array.ndim != 4:
            raise CellError(
                f"array has shape {array.shape}; give it the axes [sample, layer, position, feature]", argument="array"
            )
        self._array = array
        self.n_samples, n_layers, n_positions, self.n_features = array.shape
        # Else its numbers are no places of a model.
        self.knows_places = layers is not None and positions is not None
        self.layers = _numbers("layers", layers, range(n_layers))
        self.positions = _numbers("positions", positions, range(-n_positions, 0))

    def cell(self, layer: int, position: int) -> Shaped[np.ndarray, "sample feature"]:
        """Return the ``[sample, feature]`` view of one cell.

        Raises
        ------
        CellError
            When there is no such layer or position.
        """
        if layer not in self.layers or position not in self.positions:
            raise CellError(
                f"no cell at layer {layer}, position {position}; layers: {self.layers}, positions: {self.positions}"
            )
        return self._array[:, self.layers.index(layer), self.positions.index(position)]

    def cell_blocks(self, layer: int, position: int) -> Iterator[tuple[range, Shaped[np.ndarray, "sample feature"]]]:
        """Yield the whole cell as one block."""
        yield range(self.n_samples), self.cell(layer, position)


def as_source(given: Any, name: str) -> CellSource:
    """A source of cells as it is; an array or a DataFrame in memory as one.

    Parameters
    ----------
    given : CellSource, or array-like ``[sample, feature]`` or ``[sample, layer, position, feature]``
        The first is a single cell, layer 0 at position -1.
    name : str
        What to call it in errors.

    Raises
    ------
    CellError
        It is nothing of the kind.
    """
    if isinstance(given, CellSource):
        return given
    try:
        array = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:
        # Such as a tensor on a GPU.
        raise CellError(f"{name} is no array: {error}", argument=name) from error
    if array.ndim not in (2, 4) or not (array.dtype.kind in "fiub" or array.dtype.name == "bfloat16"):
        raise CellError(
            f"{name} is {type(given).__name__} of shape {array.shape} and type {array.dtype}; give a store, or numbers "
            "[sample, feature] or [sample, layer, position, feature]",
            argument=name,
        )
    if array.dtype.kind in "iub":
        array = array.astype(np.float64)
    return ArrayCellSource(array[:, None, None] if array.ndim == 2 else array)


def cells_of(source: CellSource) -> list[Cell]:
    """All cells, positions outside, layers inside: the order of the result files."""
    return [Cell(layer, position) for position in axis(source.positions) for layer in axis(source.layers)]


def axis(values: Sequence[int | str]) -> tuple[int | str, ...]:
    """Numbers of an axis as Python's own, names as they are."""
    return tuple(value if isinstance(value, str) else int(value) for value in values)


def check_axes(source: CellSource, name: str) -> None:
    """Raise `CellError` where an axis is empty."""
    for axis in ("layers", "positions", "n_samples", "n_features"):
        value = getattr(source, axis)
        if not (value if isinstance(value, int) else len(value)):
            raise CellError(f"{name} has no {axis.removeprefix('n_')}; give at least one", argument=name)


def check_same_axes(train: CellSource, test: CellSource) -> None:
    """Raise `CellError` unless both sources have the same layers, positions and features."""
    for name in ("layers", "positions"):
        ours, theirs = list(getattr(train, name)), list(getattr(test, name))
        if ours != theirs:
            raise CellError(f"train has {name} {ours} and test has {theirs}; extract both with the same {name}=...")
    if train.n_features != test.n_features:
        raise CellError(
            f"train has {train.n_features} features and test has {test.n_features}; extract both with the same model"
        )


def _numbers(name: str, given: Sequence[int] | None, default: range) -> tuple[int, ...]:
    values = tuple(default if given is None else given)
    if len(values) != len(default) or len(set(values)) != len(values):
        raise CellError(
            f"{name}={list(values)} should be {len(default)} different numbers, one for each along that axis",
            argument=name,
        )
    return values
