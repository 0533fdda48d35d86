import ml_dtypes
import numpy as np
import pytest
import torch

from gpu_probes import ArrayCellSource, Cell, CellError
from gpu_probes.features.rows import Rows, Workspace, look_over


class Blocks(ArrayCellSource):
    """Hands out a cell in blocks of five rows, read-only."""

    def cell_blocks(self, layer, position):
        for start in range(0, self.n_samples, 5):
            block = self.cell(layer, position)[start : start + 5]
            block.flags.writeable = False
            yield range(start, start + len(block)), block


def rows_of(source, lots, chunk_rows, device="cpu"):
    cells = [Cell(0, -1), Cell(1, -1)]
    return Rows(source, cells, lots, 3, chunk_rows=chunk_rows, device=torch.device(device))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("chunk_rows", [23, 7, 4])
@pytest.mark.filterwarnings("error")
def test_chunks_hold_all_rows_sorted_by_lot_and_widened_exactly(dtype, chunk_rows: int, device: str):
    rng = np.random.default_rng(0)
    stored = rng.standard_normal((23, 2, 1, 3)).astype(dtype)
    lots = rng.integers(0, 3, 23)
    rows = rows_of(Blocks(stored), lots, chunk_rows, device)
    for _ in range(2):
        seen = []
        for chunk in rows.chunks():
            samples = chunk.samples.cpu().numpy()
            seen.append(samples)
            expected = stored.astype(np.float64)[samples, :, 0].transpose(1, 0, 2)
            assert chunk.features.dtype == torch.float64
            np.testing.assert_array_equal(chunk.features.cpu().numpy(), expected)
            for lot, held in enumerate(chunk.lots):
                assert (lots[samples[held]] == lot).all()
        assert len(seen) == -(-23 // chunk_rows)
        np.testing.assert_array_equal(np.concatenate(seen), rows.order.cpu())
    assert sorted(rows.order.tolist()) == list(range(23))


def test_one_block_after_another_uses_the_same_memory():
    rng, workspace, lots = np.random.default_rng(0), Workspace(), np.zeros(6, dtype=np.int64)
    places = set()
    # Smaller, larger than what is there, and smaller again.
    for shape in ((6, 2, 1, 3), (6, 2, 1, 2), (6, 2, 1, 5), (6, 2, 1, 4)):
        array = rng.standard_normal(shape)
        cells = [Cell(0, -1), Cell(1, -1)]
        place = torch.device("cpu")
        rows = Rows(ArrayCellSource(array), cells, lots, 1, chunk_rows=6, device=place, workspace=workspace)
        (chunk,) = rows.chunks()
        np.testing.assert_array_equal(chunk.features.numpy(), array[:, :, 0].transpose(1, 0, 2))
        places.add(chunk.features.data_ptr())
    assert len(places) <= 2
    zeros = workspace.zeros("sums", (2, 3), torch.device("cpu"))
    zeros += 1
    assert not workspace.zeros("sums", (3, 2), torch.device("cpu")).any()
    assert (chunk.features.numpy() == array[:, :, 0].transpose(1, 0, 2)).all()


def test_what_is_read_is_a_copy():
    array = np.ones((4, 2, 1, 3))
    rows = rows_of(ArrayCellSource(array), np.zeros(4, dtype=np.int64), 4)
    next(rows.chunks()).features.zero_()
    assert (array == 1).all()


class Bad(ArrayCellSource):
    def __init__(self, array, blocks):
        super().__init__(array)
        self.blocks = blocks

    def cell_blocks(self, layer, position):
        yield from self.blocks


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([(range(3), np.zeros((3, 3)))], "ended after 3 rows; the source promises 4"),
        ([(range(1, 4), np.zeros((3, 3)))], "came with rows 1-3 of shape"),
        ([(range(4), np.zeros((4, 2)))], r"came with rows 0-3 of shape \(4, 2\); the source promises rows 0-3 with 3"),
        ([(range(5), np.zeros((5, 3)))], "came with rows 0-4"),
        ([(range(4), np.zeros((4, 3), dtype=np.int64))], "came as int64; it should be one of float16, bfloat16"),
    ],
)
@pytest.mark.parametrize("chunk_rows", [4, 2])
def test_a_source_that_breaks_its_promise(blocks, message: str, chunk_rows: int):
    rows = rows_of(Bad(np.zeros((4, 2, 1, 3)), blocks), np.zeros(4, dtype=np.int64), chunk_rows)
    with pytest.raises(CellError, match=message):
        list(rows.chunks())


def test_types_do_not_change_within_a_chunk():
    blocks = [(range(2), np.zeros((2, 3))), (range(2, 4), np.zeros((2, 3), np.float32))]
    with pytest.raises(CellError, match="layer 0, position -1 came as float32 after"):
        list(rows_of(Bad(np.zeros((4, 2, 1, 3)), blocks), np.zeros(4, dtype=np.int64), 4).chunks())


@pytest.mark.parametrize("chunk_rows", [40, 3])
def test_overview(chunk_rows: int):
    array = np.random.default_rng(0).standard_normal((40, 2, 1, 3))
    array[:, 0] = 7.0
    array[30, 0, 0, 1] = 7.5
    seen = look_over(rows_of(ArrayCellSource(array), np.zeros(40, dtype=np.int64), chunk_rows))
    assert (seen.finite.tolist(), seen.constant.tolist()) == ([True, True], [False, False])
    np.testing.assert_allclose(seen.largest_norm, np.linalg.norm(array[:, :, 0], axis=-1).max(0))
    array[30, 0, 0, 1] = 7.0
    array[35, 1, 0, 2] = np.inf
    seen = look_over(rows_of(ArrayCellSource(array), np.zeros(40, dtype=np.int64), chunk_rows))
    assert (seen.finite.tolist(), seen.constant.tolist()) == ([True, False], [True, False])
