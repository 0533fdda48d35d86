"""A block of cells, searched wherever it is: in a thread of this process or in another one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float64

from gpu_probes.features.cells import CellSource
from gpu_probes.features.rows import Rows, Workspace
from gpu_probes.samples.training_sets import TrainingSets
from gpu_probes.search.block import BlockResult, LabelPlan, SearchPlan, Shuffled, search_block
from gpu_probes.search.inputs import Label
from gpu_probes.search.planner import BlockPlan
from gpu_probes.solvers.preprocessing import Preprocessing
from gpu_probes.terms import Cell


@dataclass(frozen=True)
class BlockSearch:
    """Everything that it takes to search any block of cells for labels that are fitted together.

    It can be sent to another process, on the condition that the sources can.
    """

    train: CellSource
    test: CellSource | None
    labels: Sequence[Label]
    weights: Float64[np.ndarray, " train_sample"] | None
    alphas: tuple[float, ...]
    penalties: tuple[float, ...]
    dual: bool
    plan: BlockPlan
    preprocessing: Preprocessing

    def on(self, device: torch.device) -> Callable[[tuple[Cell, ...]], list[BlockResult]]:
        """Put what all blocks share on a device; what comes back searches one block, a result for each label."""
        labels = tuple(LabelPlan.of(label, device) for label in self.labels)
        sets = TrainingSets.of(self.labels[0].folds, self.weights, device)
        shuffled, (label, *others), at_once = None, labels, self.plan.shuffles_at_once
        if label.shuffles is not None and not others and label.shuffles.n_shuffles <= at_once:
            (shuffled,) = Shuffled.batches(label, at_once, sets.rows_of_fold)
        shared = SearchPlan(
            probe=self.labels[0].probe,
            labels=labels,
            alphas=self.alphas,
            penalties=self.penalties,
            penalties_at_once=self.plan.penalties_at_once,
            shuffles_at_once=at_once,
            dual=self.dual,
            sets=sets,
            preprocessing=self.preprocessing,
            shuffled=shuffled,
        )
        return partial(self._search, shared, device, threading.local())

    def _search(
        self, shared: SearchPlan, device: torch.device, memory: threading.local, block: tuple[Cell, ...]
    ) -> list[BlockResult]:
        folds, test, chunk_rows = self.labels[0].folds, self.test, self.plan.chunk_rows
        workspace = vars(memory).setdefault("workspace", Workspace())
        rows = Rows(
            self.train, block, folds.fold_of_sample, folds.n_lots,
            chunk_rows=chunk_rows, device=device, workspace=workspace,
        )  # fmt: skip
        held_out = None
        if test is not None:
            no_lots = np.zeros(test.n_samples, dtype=np.int64)
            held_out = Rows(test, block, no_lots, 1, chunk_rows=chunk_rows, device=device)
        return search_block(shared, rows, held_out)
