"""The main job as a user starts it, on less than all of its data."""

import os
import subprocess
from pathlib import Path

import pandas as pd
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_run_sh_goes_from_the_data_to_the_report(tmp_path):
    for split, n_rows in {"train": 60, "test": 30}.items():
        table = pd.read_parquet(ROOT / f"data/success_smollm2_{split}.parquet")
        table.sample(n_rows, random_state=0).to_parquet(tmp_path / f"{split}.parquet")
    env = {
        **os.environ,
        "TRAIN_DATASET": str(tmp_path / "train.parquet"),
        "TEST_DATASET": str(tmp_path / "test.parquet"),
        "LAYERS": "0,15,20",
        "ALPHAS": "10,1000",
        "PERMUTATIONS": "20",
        "OUTPUT_DIR": str(tmp_path / "out"),
    }
    done = subprocess.run(["bash", ROOT / "run.sh"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in ("3 layers x 6 positions", "best probe by CV", "Nested CV, the score to publish", "(20 permutations)"):
        assert line in done.stdout
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out/probes/report.html")
    assert "What is" in (tmp_path / "out/probes/report.html").read_text()
