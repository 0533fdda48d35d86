"""The SLURM command of the page on machines."""

import os
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from activation_store import ActivationStore
from tests.helpers.models import QUESTIONS
from tests.helpers.ray import machine_for_ray

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def no_other_ray() -> Generator[None]:
    with machine_for_ray(alone=True):
        yield


def test_a_slurm_job_as_far_as_one_machine_goes(tmp_path, tiny_model):
    """The command of the page on machines, with this machine as its only node."""
    page = (Path(__file__).parents[2] / "docs/machines.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("srun "))
    assert line == 'srun ray symmetric-run --address "$head:6379" --min-nodes 4 -- probesweep run experiment.toml'
    table = pd.DataFrame({"question": QUESTIONS, "success_rate": np.linspace(0, 1, len(QUESTIONS))})
    for split in ("train", "test"):
        table.assign(question=table["question"] + f" ({split})").to_parquet(tmp_path / f"{split}.parquet")
    (tmp_path / "experiment.toml").write_text(
        f"""output_dir = "out"
device = "cpu"
[model]
model = "{tiny_model("llama")}"
batch_size = 4
shard_samples = 4
[data]
train_dataset = "train.parquet"
test_dataset = "test.parquet"
use_chat_template = true
layers = "0,1"
[statistics]
permutations = 0
[machines]
ray = "auto"
"""
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = (
        line.removeprefix("srun ")
        .replace('"$head:6379"', f"127.0.0.1:{port}")
        .replace("--min-nodes 4", "--min-nodes 1")
    )
    words = command.replace("ray symmetric-run", "ray symmetric-run --num-cpus=2").split()
    place = Path(sys.executable).parent
    done = subprocess.run(
        [str(place / words[0]), *words[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=240,
        env={**os.environ, "PATH": f"{place}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out/train.zarr").is_dir(), done.stdout + done.stderr
    assert ActivationStore.open(tmp_path / "out/train.zarr").verify() == []
    assert (tmp_path / "out/probes/run.json").is_file()
