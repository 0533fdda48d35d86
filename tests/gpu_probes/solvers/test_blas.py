import ast
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import scipy.linalg
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from gpu_probes.solvers.blas import add_square, factorise_in_place, limit_threads

SHAPES = [(7, 5), (5, 7), (1, 3), (3, 1), (1, 1), (0, 4), (4, 0), (200, 130)]


def arrangements(n_rows: int, n: int) -> dict[str, torch.Tensor]:
    """The same shape in memory as it comes: rows, columns, parts of others."""
    rng = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=rng)

    return {
        "rows": draw(n_rows, n),
        "columns": draw(n, n_rows).mT,
        "some rows": draw(n_rows + 5, n)[3 : 3 + n_rows],
        "some features": draw(n_rows, n + 4)[:, 2 : 2 + n],
        "some columns": draw(n, n_rows + 4)[:, 1 : 1 + n_rows].mT,
        "of many cells": draw(3, n_rows, n)[1],
    }


@pytest.mark.parametrize(("n_rows", "n"), SHAPES)
def test_squares_are_added_below_the_diagonal_and_nothing_else_is_touched(n_rows: int, n: int):
    for name, rows in arrangements(n_rows, n).items():
        around = torch.arange((n + 2) * n, dtype=torch.float64).reshape(n + 2, n)
        before = around.clone()
        add_square(around[1 : n + 1], rows)
        expected = before.clone()
        expected[1 : n + 1] += torch.from_numpy(np.tril(rows.numpy().T @ rows.numpy()))
        np.testing.assert_allclose(around, expected, rtol=1e-13, atol=1e-13, err_msg=name)


def test_rows_that_blas_cannot_step_through_are_refused():
    apart = torch.ones(6, 8, dtype=torch.float64)[::2, ::2]
    with pytest.raises(ValueError, match="strides"):
        add_square(torch.zeros(4, 4, dtype=torch.float64), apart)
    with pytest.raises(ValueError, match="strides"):
        add_square(torch.zeros(4, 8, dtype=torch.float64)[:, :4], apart.contiguous())
    with pytest.raises(ValueError, match="BLAS cannot read"):
        add_square(torch.zeros(4, 4, dtype=torch.float64), torch.ones(1, 4, dtype=torch.float64).expand(3, 4))
    with pytest.raises(ValueError, match="strides"):
        factorise_in_place(torch.eye(8, dtype=torch.float64)[::2, ::2])


@pytest.mark.parametrize("n", [1, 2, 130])
def test_factors_are_scipys_and_what_is_above_stays(n: int):
    half = torch.randn(n, n + 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = half @ half.mT
    expected = scipy.linalg.cholesky(matrix.numpy(), lower=True)
    above = torch.full((n, n), 7.0, dtype=torch.float64).triu(1)
    found = matrix.tril() + above
    assert factorise_in_place(found)
    np.testing.assert_allclose(found, expected + above.numpy(), rtol=1e-10, atol=1e-12)


def test_a_matrix_that_has_no_factor_is_told():
    assert factorise_in_place(torch.empty(0, 0, dtype=torch.float64))
    assert not factorise_in_place(torch.diag(torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)))
    assert not factorise_in_place(torch.full((2, 2), torch.nan, dtype=torch.float64))


def test_other_threads_run_meanwhile():
    rows = torch.ones(20_000, 900, dtype=torch.float64)
    ticks: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    with limit_threads(1):
        add_square(torch.zeros(2, 2, dtype=torch.float64), rows[:2, :2])  # The first call looks for it.
        thread.start()
        started = time.perf_counter()
        add_square(torch.zeros(900, 900, dtype=torch.float64), rows)
        ended = time.perf_counter()
    done.set()
    thread.join()
    # Not one tick within it, if it kept the interpreter: a call takes some 300 ms.
    assert len([at for at in ticks if started < at < ended]) >= 5


def n_threads() -> set[int]:
    return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}


def test_threads_are_as_many_as_before_when_the_last_limit_ends():
    # In a process that has not used SciPy yet.
    code = """
from gpu_probes.solvers.blas import limit_threads
from threadpoolctl import threadpool_info
with limit_threads(1):
    blas = [one for one in threadpool_info() if one["user_api"] == "blas"]
    print({one["filepath"].split("/")[-2]: one["num_threads"] for one in blas})
"""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert ast.literal_eval(done.stdout) == {"numpy.libs": 1, "scipy.libs": 1}
    with threadpool_limits(3, user_api="blas"):
        first, second = limit_threads(1), limit_threads(2)
        first.__enter__()
        second.__enter__()
        assert n_threads() == {2}
        first.__exit__(None, None, None)
        assert n_threads() == {2}
        second.__exit__(None, None, None)
        assert n_threads() == {3}
