"""How long an extraction would take, from a few batches; nothing is written."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer

from activation_store.capture.batches import BatchPlan
from activation_store.capture.hidden_states import HiddenStates
from activation_store.extraction.model_run import ModelRun
from activation_store.format.layout import Layout

_N_BATCHES = 4


@dataclass(frozen=True)
class Speed:
    """What a loaded model was measured at.

    Parameters
    ----------
    load_s : float
        Seconds to load the model and to compare batches with single prompts.
    token_s : float
        Seconds per token, padding included.
    n_batches : int
        How many batches were run.
    plan : BatchPlan
        How prompts are put into batches.
    """

    load_s: float
    token_s: float
    n_batches: int
    plan: BatchPlan

    def seconds(self, run: ModelRun, layout: Layout, shards: Iterable[int]) -> float:
        """Estimated time for some shards, loading included."""
        n_tokens = run.prompts.n_tokens
        return self.load_s + self.token_s * sum(
            self.plan.padded_tokens(n_tokens, layout.rows(shard)) for shard in shards
        )


def measure(run: ModelRun, layout: Layout, prefix_tokens: int, max_rows: int | None) -> Speed:
    """Load the model and time a few batches, of long prompts and of short ones.

    Parameters
    ----------
    run : ModelRun
    layout : Layout
        Of the store.
    prefix_tokens, max_rows
        As of `ModelRun.begin`.
    """
    started = time.monotonic()
    states, plan = run.begin(prefix_tokens, max_rows)
    load_s = time.monotonic() - started
    n_tokens = run.prompts.n_tokens
    batches = list(plan.batches(n_tokens, layout.rows(0)))
    chosen = np.unique(np.linspace(0, len(batches) - 1, _N_BATCHES).round().astype(np.int64)).tolist()
    # The first one pays for what libraries do only once.
    _time(run, states, batches[chosen[0]])
    seconds = sum(_time(run, states, batches[index]) for index in chosen)
    measured = sum(len(batches[index]) * (int(n_tokens[batches[index]].max()) - plan.prefix_tokens) for index in chosen)
    return Speed(load_s, seconds / measured, len(chosen), plan)


def _time(run: ModelRun, states: HiddenStates, rows: Integer[np.ndarray, " row"]) -> float:
    prompts = [run.prompts.row(row) for row in rows.tolist()]
    started = time.monotonic()
    states.start(prompts)()
    return time.monotonic() - started
