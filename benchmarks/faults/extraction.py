"""SIGKILL of ``probesweep extract`` itself, with a tiny random model, at random shards."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from activation_store.errors import StoreError
from activation_store.store.reader import ActivationStore
from benchmarks.faults.aftermath import difference
from benchmarks.faults.counts import Counts
from benchmarks.faults.job import STORE, same_bits, scratch, tree
from benchmarks.faults.scenarios import JOURNAL_PATH

ROOT = Path(__file__).parents[2]
SHARD_SAMPLES = 8
BATCH_SIZE = 4
TIMEOUT_S = 300


@dataclass(frozen=True)
class Extraction:
    """One command line.

    Parameters
    ----------
    model, dataset : Path
        Its inputs.
    n_samples : int
        Rows of the dataset.
    """

    model: Path
    dataset: Path
    n_samples: int

    @classmethod
    def prepare(cls, folder: Path, n_samples: int) -> Extraction:
        """Write a tiny model and questions into a folder."""
        # The tests' model: transformers takes seconds to import.
        from tests.helpers.models import QUESTIONS, save_model

        questions = [f"{row}: {QUESTIONS[row % len(QUESTIONS)]}" for row in range(n_samples)]
        labels = np.linspace(0, 1, n_samples)
        pd.DataFrame({"question": questions, "success_rate": labels}).to_parquet(folder / "questions.parquet")
        return cls(save_model(folder / "model", "llama"), folder / "questions.parquet", n_samples)

    def start(self, root: Path) -> subprocess.Popen[bytes]:
        """Start the command; its store is below `root`."""
        inputs = ["--model", str(self.model), "--dataset_path", str(self.dataset), "--output_path", str(root / STORE)]
        sizes = ["--batch_size", str(BATCH_SIZE), "--shard_samples", str(SHARD_SAMPLES)]
        return subprocess.Popen(
            [sys.executable, "-m", "probesweep", "extract", *inputs, *sizes, "--use_chat_template", "--device", "cpu"],
            cwd=ROOT,
            # Batches are planned for the number of threads: as many as `finish` has, for the same store.
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def finish(self, root: Path) -> None:
        """Do the rest in this process, which has imported transformers by now."""
        import activation_store

        activation_store.Extraction(
            str(self.model),
            self.dataset,
            root / STORE,
            use_chat_template=True,
            device="cpu",
            batch_size=BATCH_SIZE,
            shard_samples=SHARD_SAMPLES,
        ).run()

    @property
    def n_shards(self) -> int:
        return -(-self.n_samples // SHARD_SAMPLES)


def killed_extraction(n_kills: int, n_samples: int, seed: int) -> Counts:
    """Kill the command when a random number of shards is committed, start it again, kill it again, let it finish.

    Parameters
    ----------
    n_kills : int
        Of one store.
    n_samples : int
        Rows of the dataset.
    seed : int
        Of the times.
    """
    counts = Counts()
    with scratch() as folder, scratch(real_disk=True) as whole, scratch(real_disk=True) as root:
        extraction = Extraction.prepare(folder, n_samples)
        extraction.finish(whole)
        expected = ActivationStore.open(whole / STORE)[:]
        # 0: before the store is there.
        for target in sorted(random.Random(seed).sample(range(extraction.n_shards), n_kills)):
            counts += _killed_once(extraction, root, target, expected)
        extraction.finish(root)
        differing = difference(tree(root), tree(whole))
    counts.reruns += 1
    counts.identical += not differing
    counts.expect(
        not differing, f"extract killed {n_kills} times, then finished: other than uninterrupted: {differing}"
    )
    return counts


def _killed_once(extraction: Extraction, root: Path, target: int, expected: np.ndarray) -> Counts:
    process = extraction.start(root)
    give_up = time.monotonic() + TIMEOUT_S
    while (n_seen := _n_records(root / JOURNAL_PATH)) <= target and process.poll() is None:
        assert time.monotonic() < give_up, "extract hangs"
        time.sleep(0.001)
    process.kill()
    process.wait()
    counts = Counts(cases=1, fired=process.returncode == -9)
    counts.expect(bool(counts.fired), f"extract ended with {process.returncode} before it was killed")
    _judge(counts, root / STORE, max(n_seen - 1, 0), expected)
    return counts


def _n_records(journal: Path) -> int:
    """Records that are there: one when the store is created, and one of each shard."""
    return sum(1 for path in journal.glob("*") if not path.name.startswith("."))


def _judge(counts: Counts, path: Path, n_committed: int, expected: np.ndarray) -> None:
    """Whether what was committed when the process was killed is there and right."""
    try:
        store = ActivationStore.open(path)
        n_rows = store.n_committed
        right = same_bits(store[:n_rows], expected[:n_rows])
    except StoreError as error:
        counts.lost += n_committed
        counts.expect(n_committed == 0, f"extract killed: {n_committed} shards were committed: {error}")
        return
    lost = max(n_committed - -(-n_rows // SHARD_SAMPLES), 0)
    counts.lost += lost
    counts.right += right
    counts.wrong += not right
    counts.expect(lost == 0 and right, f"extract killed: {lost} shards lost, values right: {right}")
