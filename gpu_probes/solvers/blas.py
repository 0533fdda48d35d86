"""What torch lacks or does slowly on a CPU: a symmetric product, and a factorisation in place, by SciPy's BLAS.

The functions are called by the addresses that SciPy gives to compiled code. So other threads of Python run meanwhile,
which SciPy's own functions keep waiting. BLAS reads a matrix by columns: it sees the transpose, whose upper triangle is
the lower one here.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from ctypes import byref, c_double, c_int
from functools import cache
from importlib import import_module

import torch
from jaxtyping import Float64
from threadpoolctl import threadpool_limits
from torch import Tensor


def add_square(gram: Float64[Tensor, "n n"], rows: Float64[Tensor, "row n"]) -> None:
    """Add the lower triangle of X'X to `gram`, with half of the work of the full product.

    Parameters
    ----------
    gram : Tensor [n, n]
        Contiguous.
    rows : Tensor [row, n]
        X: its rows or its columns are contiguous.
    """
    n_rows, n = rows.shape
    if n_rows == 0 or n == 0:
        return
    _check(gram, gram.is_contiguous())
    by_rows = _is_dense(rows)
    _check(rows, by_rows or _is_dense(rows.mT))
    stride = max(rows.stride(0), n) if by_rows else max(rows.stride(1), n_rows)
    one = byref(c_double(1.0))
    _function("blas", "dsyrk", 10)(
        *(b"U", b"N" if by_rows else b"T", byref(c_int(n)), byref(c_int(n_rows)), one),
        *(rows.data_ptr(), byref(c_int(stride)), one, gram.data_ptr(), byref(c_int(n))),
    )


def factorise_in_place(matrix: Float64[Tensor, "n n"]) -> bool:
    """Replace the lower triangle of a symmetric matrix, contiguous, by its Cholesky factor; whether there is one."""
    n, info = len(matrix), c_int()
    _check(matrix, matrix.is_contiguous())
    _function("lapack", "dpotrf", 5)(b"U", byref(c_int(n)), matrix.data_ptr(), byref(c_int(max(n, 1))), byref(info))
    # LAPACK does not look for NaN, which every pivot behind one becomes.
    return info.value == 0 and bool(matrix.diagonal().isfinite().all())


class _Limit:
    """How many threads BLAS has while anybody limits it; afterwards as many as before the first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # The first one knows what there was before.
        self._limits: list[threadpool_limits] = []
        self._n_holders = 0

    @contextmanager
    def hold(self, n_threads: int) -> Generator[None]:
        """Limit them until the block ends, and as long as anybody else does."""
        # A library is limited only if it is loaded.
        _function("blas", "dsyrk", 10)
        with self._lock:
            self._limits.append(threadpool_limits(n_threads, user_api="blas"))
            self._n_holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._n_holders -= 1
                if not self._n_holders:
                    self._limits[0].restore_original_limits()
                    self._limits.clear()


_limit = _Limit()


def limit_threads(n_threads: int) -> AbstractContextManager[None]:
    """Let each of these calls take so many threads, and others of SciPy and NumPy in this process, until the end."""
    return _limit.hold(n_threads)


def _is_dense(rows: Float64[Tensor, "row n"]) -> bool:
    """Whether the rows are contiguous, one behind the other or further apart."""
    n_rows, n = rows.shape
    return (n == 1 or rows.stride(1) == 1) and (n_rows == 1 or rows.stride(0) >= n)


def _check(matrix: Tensor, fits: bool) -> None:
    if matrix.dtype != torch.float64 or matrix.device.type != "cpu" or not fits:
        raise ValueError(f"BLAS cannot read {matrix.dtype} on {matrix.device} with strides {matrix.stride()}")


@cache
def _function(library: str, name: str, n_arguments: int) -> Callable[..., None]:
    """Such as `dsyrk` of `scipy.linalg.cython_blas`; takes pointers, as Fortran does."""
    name_of, address_of = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    address_of.restype, address_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    capsule = import_module(f"scipy.linalg.cython_{library}").__pyx_capi__[name]
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * n_arguments)(address_of(capsule, name_of(capsule)))
