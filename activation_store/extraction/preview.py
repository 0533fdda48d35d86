"""What an extraction would do, for readers: sizes, and the tokens that it would store."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from activation_store.capture.batches import BatchPlan
from activation_store.files.storage import Location
from activation_store.format.spec import StoreSpec
from activation_store.prompts.prompts import Prompts
from activation_store.prompts.tokenizer import Tokenizer

_EXAMPLES = 10


def preview(
    path: Location, spec: StoreSpec, plan: BatchPlan, prompts: Prompts, tokenizer: Tokenizer, weights_nbytes: int
) -> str:
    """Describe an extraction before it runs.

    Parameters
    ----------
    path : Path or str
        Of the store that would be written.
    spec : StoreSpec
        Of the store.
    plan : BatchPlan
        How the prompts are put into batches.
    prompts : Prompts
        One per sample.
    tokenizer : Tokenizer
        Of the model.
    weights_nbytes : int
        Bytes of the model's weights.
    """
    return f"{_sizes(path, spec, plan, prompts, weights_nbytes)}\n\n{_tokens(prompts, tokenizer)}"


def _sizes(path: Location, spec: StoreSpec, plan: BatchPlan, prompts: Prompts, weights_nbytes: int) -> str:
    layout, n_tokens = spec.layout, prompts.n_tokens
    shards = [layout.rows(shard) for shard in range(layout.n_shards)]
    n_batches = sum(1 for rows in shards for _ in plan.batches(n_tokens, rows))
    padded = sum(plan.padded_tokens(n_tokens, rows) for rows in shards)
    total = int(n_tokens.sum())
    run = total - len(n_tokens) * plan.prefix_tokens
    lengths = f"{n_tokens.min()} to {n_tokens.max()} per row, median {np.median(n_tokens):.0f}"
    prefix = f"; the first {plan.prefix_tokens} are shared by all rows and run once" if plan.prefix_tokens else ""
    free = "unknown, an object store"
    if isinstance(path, Path):
        nearest = next(folder for folder in path.absolute().parents if folder.exists())
        free = f"{_size(shutil.disk_usage(nearest).free)} free"
    n_shards = f"{layout.n_shards} shard{'s' * (layout.n_shards > 1)} of up to {layout.shard_samples} rows"
    peak = weights_nbytes + 2 * layout.shard_nbytes
    return "\n".join(
        [
            f"rows         {spec.n_samples}",
            f"tokens       {total}: {lengths}{prefix}",
            f"batches      {n_batches}; {100 * (padded - run) / padded:.1f} % of their tokens are padding",
            f"store        {path}: {list(spec.shape)} {spec.dtype}, {_size(layout.store_nbytes)} in {n_shards}",
            f"disk         {free}",
            f"peak memory  about {_size(peak)}: weights {_size(weights_nbytes)}, two shards; plus what a batch takes",
        ]
    )


def _tokens(prompts: Prompts, tokenizer: Tokenizer) -> str:
    """Decoded tokens at every position of some prompts, spread over the dataset."""
    import pandas as pd

    ids = prompts.tail_ids()
    rows = np.unique(np.linspace(0, len(ids) - 1, _EXAMPLES).astype(int)).tolist()
    table = pd.DataFrame(
        [[repr(tokenizer.decode([token])) for token in ids[row].tolist()] for row in rows],
        index=[f"row {row}" for row in rows],
        columns=list(prompts.positions),
    )
    return f"token at each position\n{table.to_string()}"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"
