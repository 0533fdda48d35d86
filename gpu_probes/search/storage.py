"""Where results are kept: in memory or, if they are a large part of the budget, in unnamed files."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped

from gpu_probes.display.wording import sizes
from gpu_probes.errors import BudgetError
from gpu_probes.search.devices import free_bytes
from gpu_probes.search.planner import held_nbytes

# Smaller arrays stay in memory, whatever the budget.
_SMALL_NBYTES = 2**16


@dataclass(frozen=True)
class Memory:
    """What a command may take.

    Attributes
    ----------
    budget_bytes : int
        Memory on each device.
    held_nbytes : int
        Part of it that is held all the time.
    result_nbytes : int
        Size of the results, mostly predictions of all cells.
    spill_folder : Path or None
        Folder of results kept in files; None if they are in memory.
    """

    budget_bytes: int
    held_nbytes: int
    result_nbytes: int
    spill_folder: Path | None

    @property
    def free_nbytes(self) -> int:
        """Memory left for the fits."""
        return self.budget_bytes - self.held_nbytes


def plan_memory(
    devices: Sequence[torch.device],
    budget_bytes: int | None,
    *,
    free_nbytes: int,
    result_nbytes: int,
    other_nbytes: int,
    folder: Path | None,
) -> Memory:
    """Decide where results are kept.

    Parameters
    ----------
    devices : where the fits are done
    budget_bytes : what was allowed; None: `free_nbytes`
    free_nbytes : what may be used on each device, if nothing else is said
    result_nbytes : of all results
    other_nbytes : of what else is held in the host's memory
    folder : for files; None: the system's for temporary ones

    Raises
    ------
    BudgetError
        When neither memory nor disk holds the results.
    """
    budget = on_host = free_nbytes if budget_bytes is None else budget_bytes
    if budget_bytes is None and devices[0].type != "cpu":
        on_host = free_bytes((torch.device("cpu"),))
    held = held_nbytes(result_nbytes, on_host)
    spill_folder = None
    if held < result_nbytes:
        spill_folder = Path(tempfile.gettempdir()) if folder is None else folder
        _check_disk(spill_folder, result_nbytes)
    return Memory(budget, held + other_nbytes if devices[0].type == "cpu" else 0, result_nbytes, spill_folder)


def _check_disk(folder: Path, needed_nbytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed_nbytes > free:
        needed, left = sizes(needed_nbytes, free)
        raise BudgetError(
            f"the predictions of all cells need {needed}, more than the budget, and {folder} has {left} free; give "
            "fewer layers, positions or rows, or a disk with more room",
            argument="spill_folder",
        )


def empty_array(
    shape: tuple[int, ...], dtype: np.dtype[np.generic], spill_folder: Path | None
) -> Shaped[np.ndarray, ...]:
    """Make room for results, in memory or in a file without a name, which goes with the array.

    Raises
    ------
    BudgetError
        When the disk is full: it would be a crash later.
    """
    n_bytes = prod(shape) * dtype.itemsize
    if spill_folder is None or dtype.hasobject or n_bytes < _SMALL_NBYTES:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(dir=spill_folder) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        except OSError as error:
            raise BudgetError(
                f"{spill_folder} has no room for the predictions of all cells ({error.strerror}); give fewer layers, "
                "positions or rows, or a disk with more room",
                argument="spill_folder",
            ) from error
        return np.ndarray(shape, dtype, buffer=mmap.mmap(file.fileno(), n_bytes))
