"""Which samples belong together: those of a group, and those with the same prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from gpu_probes.errors import LabelError


@dataclass(frozen=True)
class Grouping:
    """Samples that must not be on both sides of a split.

    Attributes
    ----------
    group : ndarray [sample]
        Group of each sample, from 0: those of the column of groups, joined where a prompt is in two of them.
    block : ndarray [sample]
        Block of each sample, from 0: samples with the same prompt.
    has_column : bool
        Whether a column of groups was given; if not, the groups are the blocks.
    n_exact, n_normalised : int
        Samples whose prompt repeats an earlier one, exactly and ignoring case and whitespace.
    """

    group: Int64[np.ndarray, " sample"]
    block: Int64[np.ndarray, " sample"]
    has_column: bool
    n_exact: int
    n_normalised: int

    @property
    def n_groups(self) -> int:
        """How many there are."""
        return int(self.group.max()) + 1

    @property
    def is_trivial(self) -> bool:
        """Whether every sample is its own group."""
        return self.n_groups == len(self.group)


def group_samples(n_samples: int, groups: Any = None, prompts: Sequence[str] | None = None) -> Grouping:
    """Join samples of the same group, and samples with the same prompt.

    Parameters
    ----------
    n_samples : int
    groups : array-like [sample], optional
        Numbers or strings, equal for samples that belong together.
    prompts : sequence of str, optional
        Prompts of the samples; case and runs of whitespace are ignored.

    Raises
    ------
    LabelError
        When their number is not that of the samples, or a group is missing.
    """
    alone = np.arange(n_samples)
    exact = alone if prompts is None else _numbered(prompts, n_samples, "prompts")
    block = alone if prompts is None else _numbered([normalised(text) for text in prompts], n_samples, "prompts")
    group = block if groups is None else _joined(_numbered(groups, n_samples, "groups"), block)
    repeats = [n_samples - len(np.unique(ids)) for ids in (exact, block)]
    return Grouping(group, block, groups is not None, *repeats)


def normalised(text: str) -> str:
    """A string normalized for case and whitespace."""
    return " ".join(text.split()).casefold()


def shared_prompts(train: Sequence[str], test: Sequence[str]) -> Bool[np.ndarray, " test_sample"]:
    """Whether each test prompt also occurs in training, ignoring case and whitespace."""
    seen = {normalised(text) for text in train}
    return np.array([normalised(text) in seen for text in test], dtype=bool)


def _numbered(values: Any, n_samples: int, name: str) -> Int64[np.ndarray, " sample"]:
    """Number distinct values in order of first appearance."""
    import pandas as pd

    column = values if isinstance(values, pd.Series) else pd.Series(np.asarray(values))
    if len(column) != n_samples:
        raise LabelError(f"{name} has {len(column)} values for {n_samples} samples; give one for each", argument=name)
    missing = np.flatnonzero(column.isna())
    if missing.size:
        raise LabelError(
            f"{name} has {missing.size} null values, the first in row {missing[0]}; give every row a group",
            argument=name,
        )
    return pd.factorize(column)[0].astype(np.int64)


def _joined(first: Int64[np.ndarray, " sample"], second: Int64[np.ndarray, " sample"]) -> Int64[np.ndarray, " sample"]:
    """Join groups of two groupings that share a sample, over any number of steps."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n_first = int(first.max()) + 1
    size = n_first + int(second.max()) + 1
    links = coo_array((np.ones(len(first)), (first, n_first + second)), shape=(size, size))
    _, component = connected_components(links, directed=False)
    return _numbered(component[first], len(first), "groups")
