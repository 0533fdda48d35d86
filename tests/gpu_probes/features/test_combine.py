"""Cells made of other cells."""

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest

from gpu_probes import ArrayCellSource, Cell, CellError, sweep
from gpu_probes.features.cells import CellSource
from gpu_probes.features.combine import JoinedCells, JoinedLayers, MeanPositions, combine, parse_join

ARRAY = np.random.default_rng(0).standard_normal((13, 3, 2, 4))


class Uneven(ArrayCellSource):
    """Hands out blocks that are cut elsewhere in every cell."""

    def cell_blocks(self, layer: int, position: int) -> Iterator[tuple[range, np.ndarray]]:
        cell, size = self.cell(layer, position), 2 + layer - position
        for start in range(0, self.n_samples, size):
            stop = min(start + size, self.n_samples)
            yield range(start, stop), cell[start:stop]


def read(source: CellSource, layer: int | str, position: int | str) -> np.ndarray:
    expected, parts = 0, []
    for rows, block in source.cell_blocks(layer, position):
        assert rows.start == expected
        assert len(block) == len(rows)
        expected = rows.stop
        parts.append(block)
    assert expected == source.n_samples
    return np.concatenate(parts)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("kind", [ArrayCellSource, Uneven])
def test_joined_layers_joined_cells_and_means(kind: type[ArrayCellSource], dtype: type):
    array = ARRAY.astype(dtype)
    source = kind(array)
    layers = JoinedLayers(source)
    assert (layers.layers, layers.positions, layers.n_features) == (("0-2",), (-2, -1), 12)
    np.testing.assert_array_equal(read(layers, "0-2", -1), array[:, :, 1].reshape(13, 12))
    cells = JoinedCells(source, [Cell(2, -1), Cell(0, -2)])
    assert (cells.layers, cells.positions) == (("2@-1+0@-2",), ("joined",))
    np.testing.assert_array_equal(
        read(cells, cells.layers[0], "joined"), np.concatenate([array[:, 2, 1], array[:, 0, 0]], 1)
    )
    means = MeanPositions(source)
    assert (means.layers, means.positions) == ((0, 1, 2), ("mean of -2..-1",))
    np.testing.assert_allclose(read(means, 1, "mean"), array[:, 1].astype(float).mean(1), rtol=1e-12)


@pytest.mark.parametrize("how", ["0@-1,0@-1", "1@-2,0@-1,01@-2"])
def test_a_cell_to_join_is_named_once(how: str):
    with pytest.raises(CellError, match=r"\(join=\.\.\.\) are .*; give each once"):
        parse_join(how)


def test_a_sweep_over_them_is_a_sweep_over_the_numpy_arrays():
    labels = ARRAY[:, 1, 1, 0] + ARRAY[:, 2, 0, 1]
    joined = sweep(combine(ArrayCellSource(ARRAY), "layers"), labels, k_fold=True, n_folds=3)
    by_hand = sweep(ArrayCellSource(ARRAY.transpose(0, 2, 1, 3).reshape(13, 1, 2, 12)), labels, k_fold=True, n_folds=3)
    np.testing.assert_allclose(joined.cv_predictions, by_hand.cv_predictions)
    assert joined.best is not None
    assert joined.best.cell.layer == "0-2"
    assert joined.to_frame()["layer"].tolist() == ["0-2", "0-2"]


def test_names():
    source = ArrayCellSource(ARRAY, layers=(0, 7, 30))
    assert combine(source, None) is source
    assert combine(source, "layers").layers == ("0+7+30",)
    assert combine(source, "mean").positions == ("mean of -2..-1",)
    assert combine(source, "7@-1,30@-2").n_features == 8


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "rows",
            "join='rows' is unknown; use layers, mean, or LAYER@POSITION with commas between, such as 20@-4,18@-1",
        ),
        ("1@-1,1@-1", "give each once, at least one"),
        ("5@-1", "there is no cell 5@-1; layers: 0-2, positions: -2"),
    ],
)
def test_cells_that_are_not_there(how: str, message: str):
    with pytest.raises(CellError, match=message):
        combine(ArrayCellSource(ARRAY), how)
