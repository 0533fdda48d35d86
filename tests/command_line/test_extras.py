"""What works without the extras, and what is said where one is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

CODE = """
import sys
for module in ("altair", "vl_convert", "gguf", "accelerate", "himalaya", "datasets"):
    sys.modules[module] = None
import numpy as np
import pandas as pd
from gpu_probes import ArrayCellSource, ProbeError, sweep
from tests.helpers.commands import run
from tests.helpers.models import QUESTIONS, save_model

save_model("model", "llama")
table = pd.DataFrame({"question": QUESTIONS * 2, "success_rate": [i / 30 for i in range(22)]})
table.to_parquet("d.parquet")
extract = ("--dataset_path", "d.parquet", "--use_chat_template", "--layers", "0,1")
for store in ("train.zarr", "test.zarr"):
    done = run("extract", "--model", "model", "--output_path", store, *extract)
    assert done.returncode == 0, done.stderr
train = ("--train_activations", "train.zarr", "--test_activations", "test.zarr", "--output_dir", "out")
done = run("train", *train, "--k_fold")
assert done.returncode == 0, done.stderr
for command, missing in (
    (("report", "out"), "altair is not installed; pip install 'probesweep[report]'"),
    (("extract", "--model", "smollm2", "--output_path", "x.zarr", *extract), "pip install 'probesweep[gguf]'"),
    (
        ("extract", "--model", "model", "--device_map", "auto", "--output_path", "x.zarr", *extract),
        "accelerate is not installed; pip install accelerate",
    ),
    (
        ("extract", "--model", "model", "--dataset_path", "me/sums:main:train", "--output_path", "x.zarr"),
        "pip install 'probesweep[datasets]'",
    ),
):
    done = run(*command)
    assert done.returncode == 2, (command, done)
    assert missing in done.stderr, done.stderr
    assert done.stderr.count("\\n") == 1, done.stderr
features = np.random.default_rng(0).normal(size=(30, 1, 1, 4))
try:
    sweep(ArrayCellSource(features), features[:, 0, 0, 0]).plot.heatmap()
except ProbeError as error:
    assert "pip install 'probesweep[report]'" in str(error), error
else:
    raise AssertionError("a figure without altair")
from click.testing import CliRunner
from benchmarks.__main__ import main
done = CliRunner().invoke(main, ["solver", "--quick"])
assert done.exit_code == 1, done
assert done.output == "Error: himalaya is not installed; pip install -e '.[dev]'\\n", done.output
"""


def test_the_core_works_without_extras_and_says_which_is_missing(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", CODE], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
