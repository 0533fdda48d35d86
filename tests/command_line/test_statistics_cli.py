"""Groups, overlap, other probes, permutations and transfer as a user meets them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from activation_store import ActivationStore
from tests.helpers.commands import run
from tests.helpers.models import QUESTIONS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def grouped(tmp_path_factory, tiny_model) -> Path:
    """Stores with a column of topics; a question of train comes twice, and four of test are in train."""
    folder = tmp_path_factory.mktemp("grouped")
    rng = np.random.default_rng(0)
    train = [f"{question} ({copy})" for copy in range(4) for question in QUESTIONS]
    tables = {
        "train": [*train, f"  {train[0].upper()} "],
        "test": [*train[:4], *(f"{question} (test)" for question in QUESTIONS)],
    }
    for name, questions in tables.items():
        n = len(questions)
        topics = [f"topic {k % 9}" for k in range(n)]
        table = {"question": questions, "success_rate": rng.random(n), "right": rng.permutation(n) % 2, "topic": topics}
        pd.DataFrame(table).to_parquet(folder / f"{name}.parquet")
        done = run(
            "extract", "--model", tiny_model("llama"), "--dataset_path", folder / f"{name}.parquet",
            "--output_path", folder / f"{name}.zarr", "--use_chat_template", "--label_column", "success_rate",
            "--label_column", "right", "--group_column", "topic", "--layers", "0,1,3",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return folder


def train(folder: Path, output: Path, *options: object, label: str | None = "success_rate"):
    chosen = () if label is None else ("--label_column", label)
    return run(
        "train", "--train_activations", folder / "train.zarr", "--test_activations", folder / "test.zarr",
        "--output_dir", output, *chosen, *options,
    )  # fmt: skip


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_group_columns_are_kept_and_shown_by_xarray(grouped: Path):
    store = ActivationStore.open(grouped / "train.zarr")
    assert store.coordinate("topic").tolist()[:3] == ["topic 0", "topic 1", "topic 2"]
    assert list(store.labels) == ["success_rate", "right"]
    assert store.fingerprint["group_columns"] == ["topic"]
    assert "topic" in store.to_xarray().coords


def test_groups_stay_together_and_are_counted(grouped: Path, tmp_path: Path):
    done = train(grouped, tmp_path, "--k_fold", "--n_folds", "3", "--groups", "topic", "--permutations", "20")
    assert done.returncode == 0, done.stderr
    inference = read(tmp_path / "inference.json")
    # The row that repeats a prompt is of another topic than it: both topics are one group.
    assert inference["groups"] == {
        "n_groups": 8,
        "column": True,
        "test_rows_grouped": True,
        "n_repeated_prompts": 0,
        "n_repeated_but_for_case_and_whitespace": 1,
    }
    assert inference["permutation"]["shuffled"].startswith("within groups")
    assert "whole groups" in inference["intervals"]["test_score"]["method"]
    assert "training prompts that repeat an earlier one: 1 (0 verbatim), held out together" in done.stdout
    assert "Permutation test over all cells: p = " in done.stdout
    assert "Nested CV, the score to publish: " in done.stdout


def test_p_of_classes_says_whose_it_is(grouped: Path, tmp_path: Path):
    options = ("--k_fold", "--alphas", "1,100", "--permutations", "19")
    fast = train(grouped, tmp_path / "fast", *options, label="right")
    assert fast.returncode == 0, fast.stderr
    slow = train(grouped, tmp_path / "slow", *options, "--permutation_statistic", "probe", label="right")
    assert slow.returncode == 0, slow.stderr
    assert "over all cells, by least squares on the class indicators: p = " in fast.stdout
    assert "Permutation test over all cells: p = " in slow.stdout
    found, probe = (read(tmp_path / name / "inference.json")["permutation"] for name in ("fast", "slow"))
    assert (found["statistic"], probe["statistic"]) == ("least_squares", "probe")
    observed = [score for row in found["observed"] for score in row if score is not None]
    assert found["observed_max"] == max(observed)
    assert "observed" not in probe
    assert probe["observed_max"] == read(tmp_path / "slow/best_probe_predictions.json")["cv_score"]
    assert found["null_max"] != probe["null_max"]
    wrong = train(grouped, tmp_path / "wrong", *options, "--permutation_statistic", "lda", label="right")
    assert wrong.returncode == 2
    assert "'lda' is not one of 'least_squares', 'probe'" in wrong.stderr


def test_repeats_can_be_split(grouped: Path, tmp_path: Path):
    def folds(*options: str) -> np.ndarray:
        assert train(grouped, tmp_path, "--k_fold", *options).returncode == 0
        predictions = read(tmp_path / "all_predictions.json")["predictions"]
        return np.array(predictions["pos_-1_layer_2"]["cv_predictions"])

    assert not np.allclose(folds(), folds("--split_repeats"))


def test_shared_prompts_are_reported_and_scored_apart(grouped: Path, tmp_path: Path):
    with_them = train(grouped, tmp_path / "a", "--k_fold")
    assert "test prompts that also occur in training: 4, scored as test rows" in with_them.stdout
    apart = train(grouped, tmp_path / "b", "--k_fold", "--drop_overlap")
    assert "test prompts that also occur in training: 4, scored separately" in apart.stdout
    overlap, before = (read(tmp_path / name / "inference.json")["overlap"] for name in "ba")
    assert overlap["rows"] == [0, 1, 2, 3]
    assert overlap["scores_of_others"] == before["scores_of_others"]
    best = read(tmp_path / "b" / "best_probe_predictions.json")
    assert len(best["test_actual"]) == len(QUESTIONS)
    assert overlap["scores_of_others"]["spearman"] == pytest.approx(best["test_score"])


def test_every_baseline_is_in_the_table(grouped: Path, tmp_path: Path):
    done = train(grouped, tmp_path, "--k_fold", label="right")
    for title in ("prompt length", "TF-IDF, logistic regression", "layer 0", "random direction", "random labels"):
        assert any(line.startswith(title) for line in done.stdout.splitlines()), done.stdout
    scores = read(tmp_path / "inference.json")["scores"]["test"]
    assert {"roc_auc", "average_precision", "ece", "recall_at_1pct_fpr", "reliability"} <= set(scores)


@pytest.mark.parametrize(
    ("options", "layers", "positions"),
    [
        (("--join", "layers"), ["0+1+3"], None),
        (("--join", "mean"), [0, 1, 3], ["mean of -5..-1"]),
        (("--join", "1@-1,3@-2"), ["1@-1+3@-2"], ["joined"]),
        (("--probe", "lda", "--alphas", "1,100"), [0, 1, 3], None),
        (("--probe", "mass_mean"), [0, 1, 3], None),
    ],
)
def test_other_probes_and_cells(options, layers, positions, grouped: Path, tmp_path: Path):
    done = train(grouped, tmp_path, "--k_fold", *options, label="right")
    assert done.returncode == 0, done.stderr
    performance = read(tmp_path / "performance.json")
    assert performance["layer_indices"] == layers
    assert positions is None or performance["positions"] == positions
    table = pd.read_parquet(tmp_path / "cells.parquet")
    assert len(table) == performance["n_layers"] * performance["n_positions"]
    moved = run("transfer", tmp_path, grouped / "test.zarr")
    assert moved.returncode == 0, moved.stderr


def test_transfer_is_the_best_probe_on_other_rows(grouped: Path, tmp_path: Path):
    done = train(grouped, tmp_path / "out", "--k_fold", label=None)
    assert done.returncode == 0, done.stderr
    output = tmp_path / "transfer.json"
    moved = run("transfer", tmp_path / "out", grouped / "train.zarr", grouped / "test.zarr", "--output_path", output)
    assert moved.returncode == 0, moved.stderr
    matrix = read(output)
    assert len(matrix["probes"]) == 2
    for label in ("success_rate", "right"):
        row = matrix["probes"][str(tmp_path / "out" / label)]
        best = read(tmp_path / "out" / label / "best_probe_predictions.json")
        performance = read(tmp_path / "out" / label / "performance.json")["layer_performance"]
        assert row[1]["best"] == pytest.approx(best["test_score"])
        for split, scores in zip(("train", "test"), row, strict=True):
            np.testing.assert_allclose(
                np.array(scores["scores"], dtype=float), np.array(performance[split], dtype=float), atol=1e-9
            )
        assert f"{best['test_score']:.3f}" in moved.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--k_fold", "--groups", "author"),
            "has no column 'author' to group by (--groups); it holds success_rate, right, topic",
        ),
        (("--permutations", "10"), "there is no cross-validation; use --k_fold"),
        (("--k_fold", "--permutations", "-1"), "permutations -1 is negative"),
        (("--k_fold", "--join", "rows"), "--join rows is unknown; use layers, mean, or LAYER@POSITION"),
        (("--k_fold", "--join", "9@-1"), "there is no cell 9@-1; layers: 0+1+3"),
        (("--probe", "lda"), "--probe lda cannot be used for regression"),
        (("--k_fold", "--probe", "mass_mean", "--alphas", "1,2"), "mass_mean has no alpha to choose"),
        (("--k_fold", "--n_folds", "10", "--groups", "topic"), "n_folds 10 is more than the 8 groups"),
    ],
)
def test_mistakes_are_one_line(options, message, grouped: Path, tmp_path: Path):
    done = train(grouped, tmp_path / "out", *options)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_nothing_is_left_to_test_on(grouped: Path, tmp_path: Path):
    done = run(
        "train", "--train_activations", grouped / "train.zarr", "--test_activations", grouped / "train.zarr",
        "--output_dir", tmp_path, "--drop_overlap", "--label_column", "right",
    )  # fmt: skip
    assert done.returncode == 2
    assert "nothing is left to test on" in done.stderr


def test_transfer_of_what_is_not_there(grouped: Path, tmp_path: Path):
    done = run("transfer", tmp_path, grouped / "test.zarr")
    assert done.returncode == 2
    assert "holds no finished training" in done.stderr
    train(grouped, tmp_path / "out", "--k_fold")
    done = run("transfer", tmp_path / "out", grouped / "test.zarr", "--label_column", "wrong")
    assert done.returncode == 2
    assert "has no label 'wrong'; it holds success_rate, right" in done.stderr
    (tmp_path / "out" / "probes.safetensors").write_bytes(b"not safetensors")
    done = run("transfer", tmp_path / "out", grouped / "test.zarr")
    assert done.returncode == 2
    assert "probes.safetensors does not match run.json next to it" in done.stderr


def test_null_group_is_refused(tiny_model, tmp_path: Path):
    pd.DataFrame(
        {"question": QUESTIONS, "success_rate": 0.5, "topic": [None, *["a"] * (len(QUESTIONS) - 1)]}
    ).to_parquet(tmp_path / "data.parquet")
    done = run(
        "extract", "--model", tiny_model("llama"), "--dataset_path", tmp_path / "data.parquet",
        "--output_path", tmp_path / "s.zarr", "--use_chat_template", "--group_column", "topic",
    )  # fmt: skip
    assert done.returncode == 2
    assert "group column 'topic' has 1 null values, the first in row 0" in done.stderr
