"""The rows of a block of cells on the device, in chunks that fit, and which rows train which fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, Shaped
from torch import Tensor

from gpu_probes.errors import CellError
from gpu_probes.features.cells import CellSource
from gpu_probes.terms import Cell

DTYPES = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Chunk:
    """Some rows of a block of cells, sorted by lot; the next chunk may take the place of their features."""

    samples: Int64[Tensor, " row"]
    lots: tuple[slice, ...]
    features: Float64[Tensor, "cell row feature"]


class Workspace:
    """Memory that a thread of a CPU uses for one block after another: new pages cost more than what is done with them.

    A GPU's memory is kept by torch.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def empty(self, name: str, shape: Sequence[int], device: torch.device) -> Tensor:
        """Room for some purpose in float64, uninitialised: what it gave for the same purpose before is used again."""
        if device.type != "cpu":
            return torch.empty(*shape, dtype=torch.float64, device=device)
        size = math.prod(shape)
        kept = self._kept.get(name)
        if kept is None or len(kept) < size:
            # Let go of the old one before there is a new one.
            self._kept.pop(name, None)
            del kept
            kept = self._kept[name] = torch.empty(size, dtype=torch.float64)
        return kept[:size].view(*shape)

    def zeros(self, name: str, shape: Sequence[int], device: torch.device) -> Tensor:
        """The same, filled with zeros."""
        return self.empty(name, shape, device).zero_()


class Rows:
    """The rows of some cells, widened to float64 on the device, chunk by chunk.

    A chunk that holds all rows is read once and kept; smaller ones are read again in every pass.

    Parameters
    ----------
    source : CellSource
    cells : the cells of the block
    lot_of_sample : ndarray [sample]
        Rows of a chunk come sorted by it.
    n_lots : how many lots there are
    chunk_rows : most rows of a chunk
    device : where the chunks go
    workspace : memory of the thread, for one `Rows` at a time; by default its own
    """

    def __init__(
        self,
        source: CellSource,
        cells: Sequence[Cell],
        lot_of_sample: Int64[np.ndarray, " sample"],
        n_lots: int,
        *,
        chunk_rows: int,
        device: torch.device,
        workspace: Workspace | None = None,
    ) -> None:
        self.workspace = workspace or Workspace()
        self.n_cells, self.n_samples, self.n_features = len(cells), source.n_samples, source.n_features
        self.device = device
        self._source, self._cells, self._lots, self._n_lots = source, cells, lot_of_sample, n_lots
        self._chunk_rows = chunk_rows
        self._kept: Chunk | None = None
        self._staging: Tensor | None = None
        self._blanked: Bool[Tensor, " cell"] | None = None
        self._origin: Float64[Tensor, "cell feature"] | None = None

    @property
    def origin(self) -> Float64[Tensor, "cell feature"]:
        """What is subtracted from all rows."""
        if self._origin is None:
            return torch.zeros(self.n_cells, self.n_features, dtype=torch.float64, device=self.device)
        return self._origin

    def shift(self, origin: Float64[Tensor, "cell feature"]) -> None:
        """Subtract the same from all rows, so that no digits are lost to a place far from 0."""
        self._origin = origin
        if self._kept is not None:
            self._kept.features.sub_(origin[:, None])

    def blank(self, cells: Bool[Tensor, " cell"]) -> None:
        """Show zeros for cells without a fit, so that what they hold does not reach the work on the others."""
        # A CPU knows at once that there are none; asking a GPU would take longer than the pass.
        self._blanked = cells if cells.device.type != "cpu" or bool(cells.any()) else None
        if self._kept is not None and self._blanked is not None:
            self._kept.features[self._blanked] = 0

    @property
    def is_whole(self) -> bool:
        """Whether all rows come in one chunk."""
        return self._chunk_rows >= self.n_samples

    @property
    def order(self) -> Int64[Tensor, " row"]:
        """Which sample each row of a pass is."""
        starts = range(0, self.n_samples, self._chunk_rows)
        parts = [start + np.argsort(self._lots[start : start + self._chunk_rows], kind="stable") for start in starts]
        return torch.as_tensor(np.concatenate(parts), device=self.device)

    def chunks(self) -> Iterator[Chunk]:
        """One pass over the rows.

        Raises
        ------
        CellError
            When the source hands out something else than it promises.
        """
        if self._kept is not None:
            yield self._kept
            return
        readers = [groupby(self._pieces(cell), key=lambda piece: piece[0] // self._chunk_rows) for cell in self._cells]
        for start in range(0, self.n_samples, self._chunk_rows):
            stop = min(start + self._chunk_rows, self.n_samples)
            # One cell after another: what a source reads ahead is of few cells at a time.
            chunk = self._read(start, stop, (next(reader)[1] for reader in readers))
            if stop - start == self.n_samples:
                self._kept, self._staging = chunk, None
            yield chunk

    def _pieces(self, cell: Cell) -> Iterator[tuple[int, Shaped[np.ndarray, "row feature"]]]:
        """First sample and rows of the source's blocks, cut where a chunk ends."""
        expected = 0
        for held, block in self._source.cell_blocks(cell.layer, cell.position):
            self._check(cell, held, block, expected)
            start = held.start
            while start < held.stop:
                stop = min(held.stop, (start // self._chunk_rows + 1) * self._chunk_rows)
                yield start, block[start - held.start : stop - held.start]
                start = stop
            expected = held.stop
        if expected != self.n_samples:
            raise CellError(f"{_name(cell)} ended after {expected} rows; the source promises {self.n_samples}")

    def _read(
        self, start: int, stop: int, readers: Iterator[Iterator[tuple[int, Shaped[np.ndarray, "row feature"]]]]
    ) -> Chunk:
        """Gather the rows while they are narrow, copy them to the device, and widen them there."""
        lots = self._lots[start:stop]
        order = np.argsort(lots, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        staged: Tensor | None = None
        for index, reader in enumerate(readers):
            for first, piece in reader:
                if staged is None:
                    staged = self._staging_of(piece.dtype)[:, : stop - start]
                elif piece.dtype.name != str(staged.dtype).removeprefix("torch."):
                    raise CellError(f"{_name(self._cells[index])} came as {piece.dtype.name} after {staged.dtype}")
                rows = place[first - start : first - start + len(piece)]
                _bits(staged)[index, rows] = _as_bits(piece)
        assert staged is not None
        features = self.workspace.empty("features", staged.shape, self.device)
        features.copy_(staged.to(self.device, non_blocking=True))
        if self._origin is not None:
            features.sub_(self._origin[:, None])
        if self._blanked is not None:
            features[self._blanked] = 0
        counts = np.bincount(lots, minlength=self._n_lots)
        ends = np.cumsum(counts)
        slices = tuple(slice(int(end - count), int(end)) for end, count in zip(ends, counts, strict=True))
        return Chunk(torch.as_tensor(order + start, device=self.device), slices, features)

    def _staging_of(self, dtype: np.dtype[np.generic]) -> Tensor:
        """Host memory for a chunk in its stored type.

        Pinned for a GPU, so that the copy need not wait, and new for each chunk: torch knows when the copy is over.
        On a CPU always the same, which the C library would not give back.
        """
        kind, shape = getattr(torch, dtype.name), (self.n_cells, min(self._chunk_rows, self.n_samples), self.n_features)
        if self.device.type == "cuda":
            return torch.empty(shape, dtype=kind, pin_memory=True)
        if self._staging is None or self._staging.dtype != kind:
            self._staging = torch.empty(shape, dtype=kind)
        return self._staging

    def _check(self, cell: Cell, held: range, block: np.ndarray, expected: int) -> None:
        if held.start != expected or held.stop > self.n_samples or block.shape != (len(held), self.n_features):
            raise CellError(
                f"{_name(cell)} came with rows {held.start}-{held.stop - 1} of shape {block.shape}; the source "
                f"promises rows {expected}-{self.n_samples - 1} with {self.n_features} features"
            )
        if block.dtype.name not in DTYPES:
            raise CellError(f"{_name(cell)} came as {block.dtype.name}; it should be one of {', '.join(DTYPES)}")


@dataclass(frozen=True)
class Overview:
    """What a first look at the rows tells of each cell."""

    finite: Bool[Tensor, " cell"]
    constant: Bool[Tensor, " cell"]
    largest_norm: Float64[Tensor, " cell"]
    median: Float64[Tensor, "cell feature"]


def look_over(rows: Rows, drawn: Int64[Tensor, " drawn"] | None = None) -> Overview:
    """Find cells with NaN or infinity, cells whose rows are all equal, and the norm of the longest row.

    The median is that of the samples that are drawn; 0 without any.
    """
    device = rows.device
    finite = torch.ones(rows.n_cells, dtype=torch.bool, device=device)
    constant = torch.ones(rows.n_cells, dtype=torch.bool, device=device)
    largest = torch.zeros(rows.n_cells, dtype=torch.float64, device=device)
    first: Tensor | None = None
    some: list[Tensor] = []
    for chunk in rows.chunks():
        features = chunk.features
        if drawn is not None:
            some.append(features[:, torch.isin(chunk.samples, drawn)])
        if first is None:
            first = features[:, :1].clone()
        norms = torch.linalg.vector_norm(features, dim=2)
        finite &= norms.isfinite().all(1)
        largest = torch.maximum(largest, norms.amax(1))
        # Almost every cell shows in a few rows that it is not constant, and is spared the pass.
        constant &= (features[:, :8] == first).all(2).all(1)
        if bool(constant.any()):
            constant &= (features == first).all(2).all(1)
    median = torch.cat(some, 1).median(1).values if some else rows.origin
    return Overview(finite, constant & finite, largest, median)


def _bits(tensor: Tensor) -> np.ndarray:
    """NumPy has no bfloat16 and torch does not know ml_dtypes': go by the bits."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _as_bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def _name(cell: Cell) -> str:
    return f"layer {cell.layer}, position {cell.position}"


# Rows of a cell of which a centred copy is made at a time: few enough for a cache, enough for a matrix product.
PIECE_ROWS = 1024
