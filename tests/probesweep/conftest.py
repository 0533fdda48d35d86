"""A store and the results of a training on it, made once."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.helpers.commands import run
from tests.helpers.models import QUESTIONS


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_model) -> Path:
    """Folder with train.zarr, test.zarr and results; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    rng = np.random.default_rng(0)
    for split, copies in {"train": 3, "test": 2}.items():
        questions = [f"{question} ({split} {copy})" for copy in range(copies) for question in QUESTIONS]
        pd.DataFrame({"question": questions, "success_rate": rng.random(len(questions))}).to_parquet(
            folder / "d.parquet"
        )
        done = run(
            "extract", "--model", tiny_model("llama"), "--dataset_path", folder / "d.parquet", "--output_path",
            folder / f"{split}.zarr", "--use_chat_template", "--layers", "0,1", "--shard_samples", 10,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    done = run(
        "train", "--train_activations", folder / "train.zarr", "--test_activations", folder / "test.zarr",
        "--output_dir", folder / "results", "--k_fold", "--alphas", "1,10", "--permutations", 20,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder
