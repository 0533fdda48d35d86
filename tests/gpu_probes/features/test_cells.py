import numpy as np
import pytest

from gpu_probes.errors import CellError
from gpu_probes.features.cells import ArrayCellSource, CellSource, check_same_axes

ARRAY = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)


def test_default_axes_and_cells():
    source = ArrayCellSource(ARRAY)
    assert isinstance(source, CellSource)
    assert (source.layers, source.positions) == ((0, 1, 2), (-4, -3, -2, -1))
    assert (source.n_samples, source.n_features) == (2, 5)
    np.testing.assert_array_equal(source.cell(2, -1), ARRAY[:, 2, 3])


def test_given_axes_are_values_not_indices():
    source = ArrayCellSource(ARRAY, layers=[4, 8, 12], positions=[-7, -5, -3, -1])
    np.testing.assert_array_equal(source.cell(8, -5), ARRAY[:, 1, 1])
    with pytest.raises(CellError, match=r"no cell at layer 1, position -5; layers: \(4, 8, 12\)"):
        source.cell(1, -5)


@pytest.mark.parametrize("layers", [[0, 1], [0, 1, 1]])
def test_axes_of_the_wrong_length_or_with_repeats(layers: list[int]):
    with pytest.raises(CellError, match=r"layers=\[0, 1.*\] should be 3 different numbers"):
        ArrayCellSource(ARRAY, layers=layers)


def test_arrays_without_four_axes():
    with pytest.raises(CellError, match=r"array has shape \(2, 3\); give it the axes"):
        ArrayCellSource(ARRAY[:, :, 0, 0])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            ArrayCellSource(ARRAY, layers=[0, 1, 3]),
            r"train has layers \[0, 1, 2\] and test has \[0, 1, 3\]; extract both",
        ),
        (ArrayCellSource(ARRAY, positions=[-9, -3, -2, -1]), r"train has positions .* and test has .*positions=\.\.\."),
        (ArrayCellSource(ARRAY[..., :4]), "train has 5 features and test has 4; extract both with the same model"),
    ],
)
def test_train_and_test_must_match(other: ArrayCellSource, message: str):
    with pytest.raises(CellError, match=message):
        check_same_axes(ArrayCellSource(ARRAY), other)
