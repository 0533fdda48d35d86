"""A store larger than the memory that extraction and training are allowed: the commands themselves, under a limit."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from activation_store.store.reader import ActivationStore
from benchmarks.extract.agreement import check_agreement
from benchmarks.shared.measure import Spread, Table, Target, WrongResultError
from benchmarks.shared.process import Usage, watch

EXTRACT, EXTRACT_TEST, TRAIN = "extract", "extract, test rows", "train"
_N_WORDS = 64
_TEST_ROWS = 100
_CHECKED_ROWS = 3


@dataclass(frozen=True)
class Larger:
    """A model whose hidden states are many and whose forward pass is cheap, and the memory that is allowed.

    Parameters
    ----------
    n_blocks, n_features, n_positions : int
        Of the model, and tokens to store.
    store_nbytes : int
        Bytes of activations, at least.
    limit_nbytes : int
        Most anonymous memory.
    shard_samples : int or None
        Samples of one shard; None: the command's default.
    """

    n_blocks: int
    n_features: int
    n_positions: int
    store_nbytes: int
    limit_nbytes: int
    shard_samples: int | None = None

    def describe(self) -> dict[str, int | None]:
        return asdict(self)

    @property
    def n_rows(self) -> int:
        sample_nbytes = (self.n_blocks + 1) * self.n_positions * self.n_features * 4
        return -(-self.store_nbytes // sample_nbytes)


def measure_larger(larger: Larger, folder: Path) -> Mapping[str, Usage]:
    """Run the two commands under the limit, and check what they wrote.

    Returns
    -------
    mapping of str to Usage
        The commands that were run: none after one that failed.
    """
    save_wide_model(larger, folder / "model")
    for split, n_rows in {"train": larger.n_rows, "test": _TEST_ROWS}.items():
        write_questions(folder / f"{split}.parquet", n_rows, larger.n_positions)
    shard = ["--shard_samples", str(larger.shard_samples)] if larger.shard_samples else []
    extract = ["extract", "--model", str(folder / "model"), "--eoi_tokens", str(larger.n_positions), *shard]
    stores = {split: str(folder / f"{split}.zarr") for split in ("train", "test")}
    commands = {
        EXTRACT: [*extract, "--dataset_path", str(folder / "train.parquet"), "--output_path", stores["train"]],
        EXTRACT_TEST: [*extract, "--dataset_path", str(folder / "test.parquet"), "--output_path", stores["test"]],
        TRAIN: [
            *["train", "--train_activations", stores["train"], "--test_activations", stores["test"]],
            *["--output_dir", str(folder / "probes"), "--k_fold", "--n_folds", "2", "--device", "cpu"],
        ],
    }
    used: dict[str, Usage] = {}
    for name, command in commands.items():
        used[name] = watch(_command_line, command, log=folder / "log", limit_nbytes=larger.limit_nbytes)
        if used[name].exit_code:
            return used
    _check_store(folder, larger.n_positions)
    _check_probes(folder / "probes", larger)
    return used


def _command_line(ready: Callable[[], None], arguments: list[str]) -> None:
    ready()
    sys.argv = ["probesweep", *arguments]
    runpy.run_module("probesweep", run_name="__main__")


def save_wide_model(larger: Larger, folder: Path) -> None:
    """Write a random model and its tokenizer: blocks that compute little, hidden states that take much room."""
    words = {"<s>": 0, "</s>": 1} | {f"w{number}": 2 + number for number in range(_N_WORDS)}
    backend = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="</s>"
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=larger.n_features,
        intermediate_size=16,
        num_hidden_layers=larger.n_blocks,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=4 * larger.n_positions,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        initializer_range=0.05,  # more of it, and 64 random blocks make whole digits of a rounding
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def write_questions(path: Path, n_rows: int, n_positions: int) -> None:
    """Write random words, a few more than the positions, with the share of even words for a label."""
    rng = np.random.default_rng(n_rows)
    words = [rng.integers(0, _N_WORDS, rng.integers(n_positions, 2 * n_positions)) for _ in range(n_rows)]
    questions = [" ".join(f"w{word}" for word in row.tolist()) for row in words]
    labels = [float((row % 2 == 0).mean()) for row in words]
    pd.DataFrame({"question": questions, "success_rate": labels}).to_parquet(path)


def _check_store(folder: Path, n_positions: int) -> None:
    """Compare a few rows of the large store with the same prompts alone, run by transformers."""
    store = ActivationStore.open(folder / "train.zarr")
    questions = pd.read_parquet(folder / "train.parquet")["question"].tolist()
    load_tokenizer: Callable[..., Any] = AutoTokenizer.from_pretrained
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder / "model"), load_tokenizer(folder / "model")
    if len(store) != len(questions):
        raise WrongResultError(f"{EXTRACT}: the store has {len(store)} of {len(questions)} rows")
    for row in np.linspace(0, len(questions) - 1, _CHECKED_ROWS).astype(int).tolist():
        with torch.inference_mode():
            inputs = tokenizer(questions[row], return_tensors="pt", return_token_type_ids=False)
            hidden_states = model(**inputs, output_hidden_states=True).hidden_states
        expected = torch.stack([hidden[:, -n_positions:] for hidden in hidden_states], dim=1).numpy()
        check_agreement(store[row : row + 1], expected, f"{EXTRACT}, row {row}")


def _check_probes(folder: Path, larger: Larger) -> None:
    performance = json.loads((folder / "performance.json").read_text())
    scores = np.array(performance["layer_performance"]["cv"], dtype=float)
    if scores.shape != (larger.n_positions, larger.n_blocks + 1) or not np.isfinite(scores).all():
        raise WrongResultError(f"{TRAIN}: not every cell has a score")


def larger_table(larger: Larger, used: Mapping[str, Usage]) -> Table:
    rows = [
        {
            "command": name,
            "at its start, MiB": f"{usage.ready_nbytes / 2**20:.0f}",
            "peak, MiB": f"{usage.peak_nbytes / 2**20:.0f}",
            "result": "done" if not usage.exit_code else f"failed with {usage.exit_code}: {usage.message}",
        }
        for name, usage in used.items()
    ]
    store, limit = larger.store_nbytes / 2**20, larger.limit_nbytes / 2**20
    fits = "" if larger.store_nbytes > larger.limit_nbytes else " (it would fit: only the full run shows anything)"
    title = f"a store of {store:.0f} MiB{fits} under a limit of {limit:.0f} MiB of anonymous memory (RLIMIT_DATA)"
    return Table(f"{title}, what pyarrow only reserves left out; peak RssAnon", rows)


def larger_target(larger: Larger, used: Mapping[str, Usage]) -> Target:
    n_done = sum(not usage.exit_code for usage in used.values())
    what = f"store / memory allowed = {larger.store_nbytes / larger.limit_nbytes:.2f}: commands of 3 that succeed"
    return Target(what, 3, Spread.of([n_done]))
