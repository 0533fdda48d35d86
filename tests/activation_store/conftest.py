"""Tiny models run on one thread; stores that tests write are read by other libraries."""

from collections.abc import Iterator

import pytest
import torch

from tests.helpers.readers import check_every_store

# Elsewhere stores are written by the same code, and what is tested is not the store.
_WRITERS = ("store", "extraction", "pt")


@pytest.fixture(autouse=True)
def other_readers_agree(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: zarr-python, xarray and TensorStore read the stores that it wrote, bit for bit."""
    writes = request.path.parent.name in _WRITERS and "tmp_path" in request.fixturenames
    folder = request.getfixturevalue("tmp_path") if writes else None
    yield
    if folder is not None:
        check_every_store(folder)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of a tiny model wait for each other longer than they compute, on busy cores a hundred times."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)
