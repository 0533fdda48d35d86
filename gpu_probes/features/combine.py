"""Cells made from other cells: some of them, several joined, all layers at a position, the mean over positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Shaped

from gpu_probes.errors import CellError
from gpu_probes.features.cells import CellSource, axis
from gpu_probes.terms import Cell

Block = tuple[range, Shaped[np.ndarray, "row feature"]]


class JoinedCells:
    """Some cells, their features one after the other, as the only cell of a source.

    Parameters
    ----------
    source : CellSource
    cells : cells of the source
    """

    def __init__(self, source: CellSource, cells: Sequence[Cell]) -> None:
        _check(source, cells)
        self._source, self._cells = source, tuple(cells)
        self.layers: tuple[int | str, ...] = ("+".join(f"{cell.layer}@{cell.position}" for cell in cells),)
        self.positions: tuple[int | str, ...] = ("joined",)
        self.n_samples, self.n_features = source.n_samples, source.n_features * len(self._cells)

    def cell_blocks(self, layer: int | str, position: int | str) -> Iterator[Block]:
        """Yield rows of all cells, concatenated."""
        del layer, position
        for rows, blocks in _aligned(self._source, self._cells):
            yield rows, np.concatenate(blocks, 1)


class JoinedLayers:
    """At each position, all layers' features one after the other.

    Parameters
    ----------
    source : CellSource
    """

    def __init__(self, source: CellSource) -> None:
        self._source = source
        self.layers: tuple[int | str, ...] = (_span(axis(source.layers)),)
        self.positions = axis(source.positions)
        self.n_samples, self.n_features = source.n_samples, source.n_features * len(source.layers)

    def cell_blocks(self, layer: int | str, position: int | str) -> Iterator[Block]:
        """Yield rows of all layers, concatenated."""
        del layer
        for rows, blocks in _aligned(self._source, [Cell(each, position) for each in self._source.layers]):
            yield rows, np.concatenate(blocks, 1)


class MeanPositions:
    """At each layer, the mean over all positions, in float64.

    Parameters
    ----------
    source : CellSource
    """

    def __init__(self, source: CellSource) -> None:
        self._source = source
        self.layers = axis(source.layers)
        self.positions: tuple[int | str, ...] = (f"mean of {_span(axis(source.positions))}",)
        self.n_samples, self.n_features = source.n_samples, source.n_features

    def cell_blocks(self, layer: int | str, position: int | str) -> Iterator[Block]:
        """Yield means."""
        del position
        for rows, blocks in _aligned(self._source, [Cell(layer, each) for each in self._source.positions]):
            yield rows, np.mean([block.astype(np.float64) for block in blocks], axis=0)


class SomeRows:
    """Some samples of a source.

    Parameters
    ----------
    source : CellSource
    kept : ndarray [sample]
        Which samples; at least one.
    """

    def __init__(self, source: CellSource, kept: Bool[np.ndarray, " sample"]) -> None:
        self._source, self._kept = source, kept
        self.layers, self.positions = axis(source.layers), axis(source.positions)
        self.n_samples, self.n_features = int(kept.sum()), source.n_features

    def cell_blocks(self, layer: int | str, position: int | str) -> Iterator[Block]:
        """Yield the kept rows of each block."""
        start = 0
        for rows, block in self._source.cell_blocks(layer, position):
            some = block[self._kept[rows.start : rows.stop]]
            if len(some):
                yield range(start, start + len(some)), some
                start += len(some)


class SomeCells:
    """Some layers and positions of a source.

    Parameters
    ----------
    source : CellSource
    layers, positions : of the source
    """

    def __init__(self, source: CellSource, layers: Sequence[int | str], positions: Sequence[int | str]) -> None:
        self._source = source
        self.layers, self.positions = tuple(layers), tuple(positions)
        self.n_samples, self.n_features = source.n_samples, source.n_features

    def cell_blocks(self, layer: int | str, position: int | str) -> Iterator[Block]:
        """Yield the source's blocks."""
        yield from self._source.cell_blocks(layer, position)


def select_cells(
    source: CellSource, layers: Sequence[int | str] | None, positions: Sequence[int | str] | None
) -> CellSource:
    """Some layers and positions of a source; None: all.

    Raises
    ------
    CellError
        When the source lacks one.
    """
    if layers is None and positions is None:
        return source
    chosen: list[Sequence[int | str]] = []
    for name, wanted, held in (("layers", layers, source.layers), ("positions", positions, source.positions)):
        missing = [each for each in wanted or () if each not in held]
        if missing:
            raise CellError(
                f"there are no {name} {_span(missing)}; {name} are {_span(axis(held))} ({name}=...)", argument=name
            )
        chosen.append(axis(held) if wanted is None else wanted)
    return SomeCells(source, *chosen)


def combine(source: CellSource, join: str | None) -> CellSource:
    """Make the cells that `join` names: ``layers``, ``mean``, or cells to join such as ``20@-4,18@-1``.

    Raises
    ------
    CellError
        When it names no cells of the source.
    """
    if join is None:
        return source
    if join in ("layers", "mean"):
        return JoinedLayers(source) if join == "layers" else MeanPositions(source)
    return JoinedCells(source, parse_join(join))


def layers_behind(source: CellSource, join: str | None, cell: Cell) -> list[int | str]:
    """Layers of the source that a cell of ``combine(source, join)`` is made of, in the source's order."""
    if join == "layers":
        return list(axis(source.layers))
    if join is None or join == "mean":
        return [cell.layer]
    named = {cell.layer for cell in parse_join(join)}
    return [layer for layer in axis(source.layers) if layer in named]


def parse_join(join: str) -> list[Cell]:
    """Read cells such as ``20@-4,18@-1``; none for ``layers`` and ``mean``, which take all.

    Raises
    ------
    CellError
        When it is nothing of these, or names a cell twice.
    """
    if join in ("layers", "mean"):
        return []
    try:
        cells = [Cell(*map(int, name.split("@"))) for name in join.split(",")]
    except (TypeError, ValueError) as error:
        raise CellError(
            f"join={join!r} is unknown; use layers, mean, or LAYER@POSITION with commas between, such as 20@-4,18@-1",
            argument="join",
        ) from error
    _check_different(cells)
    return cells


def _check_different(cells: Sequence[Cell]) -> None:
    if not cells or len(set(cells)) < len(cells):
        raise CellError(
            f"cells to join (join=...) are {[f'{c.layer}@{c.position}' for c in cells]}; give each once, at least one",
            argument="join",
        )


def _check(source: CellSource, cells: Sequence[Cell]) -> None:
    _check_different(cells)
    for cell in cells:
        if cell.layer not in source.layers or cell.position not in source.positions:
            raise CellError(
                f"there is no cell {cell.layer}@{cell.position}; layers: {_span(axis(source.layers))}, positions: "
                f"{_span(axis(source.positions))} (join=...)",
                argument="join",
            )


def _span(values: Sequence[int | str]) -> str:
    """Short name of numbers: 0-30, or 0+7+30."""
    first, last = values[0], values[-1]
    if (
        isinstance(first, int)
        and isinstance(last, int)
        and len(values) > 1
        and tuple(values) == (*range(first, last + 1),)
    ):
        return f"{first}-{last}" if first >= 0 else f"{first}..{last}"
    return "+".join(map(str, values))


def _aligned(
    source: CellSource, cells: Sequence[Cell]
) -> Iterator[tuple[range, list[Shaped[np.ndarray, "row feature"]]]]:
    """Blocks of several cells, cut at the same rows."""
    readers = [source.cell_blocks(*cell) for cell in cells]
    held: list[Block] = [next(reader) for reader in readers]
    while True:
        start, stop = held[0][0].start, min(rows.stop for rows, _ in held)
        yield range(start, stop), [block[: stop - start] for _, block in held]
        if stop >= source.n_samples:
            return
        held = [
            (range(stop, rows.stop), block[stop - start :]) if rows.stop > stop else next(reader)
            for (rows, block), reader in zip(held, readers, strict=True)
        ]
