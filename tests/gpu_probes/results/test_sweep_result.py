import errno
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors
import safetensors.numpy

from gpu_probes import ArrayCellSource, SweepResult, sweep
from gpu_probes.results.saving import probes_bytes, save_sweep

N, GRID = 40, [0.1, 10.0]
RNG = np.random.default_rng(0)
TRAIN = RNG.standard_normal((N, 3, 2, 6))
TRAIN[:, 0, 1] = 7.0
LABELS = TRAIN[:, 1, 0, 0] + RNG.standard_normal(N)
CLASSES = np.digitize(LABELS, [-0.5, 0.5]) * 1.0


def run(labels: np.ndarray = LABELS, *, test: bool = True, **options) -> SweepResult:
    source = ArrayCellSource(TRAIN, layers=[0, 5, 10], positions=[-2, -1])
    options = {"k_fold": True, "device": "cpu"} | options
    return sweep(source, labels, source, labels, **options) if test else sweep(source, labels, **options)


def read(path: Path) -> dict:
    def refuse(token: str) -> None:
        raise AssertionError(f"{token} in {path.name}")

    return json.loads(path.read_text(), parse_constant=refuse)


PERFORMANCE = [
    *("layer_performance", "layer_indices", "positions", "n_layers", "n_positions", "d_model", "task_type", "metric"),
    *("k_fold", "n_folds", "alpha", "fit_intercept", "standardize", "alpha_grid", "selected_alphas"),
]
BEST = [
    *("best_position", "best_position_idx", "best_layer", "best_layer_number", "cv_score", "test_score"),
    *("selected_alpha", "alpha_cv_scores", "train_actual", "test_actual", "train_predictions", "test_predictions"),
    *("cv_predictions", "probe_weights", "task_type", "metric"),
]
KEYS = [f"pos_{p}_layer_{i}" for p in (-2, -1) for i in range(3)]


def test_performance_schema(tmp_path: Path):
    result = run(alphas=GRID)
    save_sweep(result, tmp_path)
    content = read(tmp_path / "performance.json")
    assert list(content)[: len(PERFORMANCE) + 1] == [*PERFORMANCE, "alpha_cv_scores"]
    assert list(content["layer_performance"]) == ["train", "test", "cv"]
    assert content["layer_performance"]["cv"][0] == result.cv_score[0].tolist()
    assert content["layer_performance"]["train"][1] == [None, *result.train_score[1, 1:].tolist()]
    assert (content["layer_indices"], content["positions"]) == ([0, 5, 10], [-2, -1])
    assert (content["n_layers"], content["n_positions"], content["d_model"]) == (3, 2, 6)
    assert (content["task_type"], content["metric"], content["k_fold"]) == ("regression", "spearman", True)
    assert (content["n_folds"], content["alpha"], content["alpha_grid"]) == (5, 1.0, GRID)
    assert list(content["selected_alphas"]) == list(content["alpha_cv_scores"]) == KEYS
    assert content["selected_alphas"]["pos_-1_layer_0"] is None
    path = content["alpha_cv_scores"]["pos_-2_layer_1"]
    assert path == dict(zip(["0.1", "10.0"], result.alpha_cv_score[0, 1], strict=True))
    assert list(content["undefined"]) == ["pos_-1_layer_0"]
    assert content["undefined"]["pos_-1_layer_0"].startswith("every training row is identical here")
    assert content["status_counts"] == {"OK": 5, "CONSTANT_CELL": 1}


def test_performance_without_folds_test_or_grid(tmp_path: Path):
    save_sweep(run(test=False, k_fold=False), tmp_path)
    content = read(tmp_path / "performance.json")
    assert content["layer_performance"]["test"] is None
    assert content["layer_performance"]["cv"] is None
    assert (content["n_folds"], content["alpha"], content["alpha_grid"]) == (None, 1.0, None)
    assert set(content["selected_alphas"].values()) == {1.0, None}
    assert "alpha_cv_scores" not in content
    assert list(content["undefined"]) == ["pos_-1_layer_0"]


def test_best_probe_schema(tmp_path: Path):
    result = run(alphas=GRID)
    save_sweep(result, tmp_path)
    content = read(tmp_path / "best_probe_predictions.json")
    assert list(content) == BEST
    best = result.best
    assert (content["best_position"], content["best_position_idx"]) == (best.cell.position, best.position_index)
    assert (content["best_layer"], content["best_layer_number"]) == (best.layer_index, best.cell.layer) == (1, 5)
    assert (content["cv_score"], content["test_score"]) == (best.cv_score, best.test_score)
    assert content["selected_alpha"] == best.alpha
    assert list(content["alpha_cv_scores"]) == ["0.1", "10.0"]
    assert content["train_actual"] == content["test_actual"] == LABELS.tolist()
    np.testing.assert_allclose(TRAIN[:, 1, 0] @ content["probe_weights"], content["train_predictions"])
    assert len(content["cv_predictions"]) == len(content["test_predictions"]) == N


def test_best_probe_without_test_or_grid(tmp_path: Path):
    save_sweep(run(test=False), tmp_path)
    content = read(tmp_path / "best_probe_predictions.json")
    for key in ("test_score", "test_actual", "test_predictions", "alpha_cv_scores"):
        assert content[key] is None


@pytest.mark.slow
def test_several_classes_have_a_weight_vector_and_a_probability_each(tmp_path: Path):
    save_sweep(run(CLASSES), tmp_path)
    content = read(tmp_path / "best_probe_predictions.json")
    assert np.shape(content["probe_weights"]) == (3, 6)
    np.testing.assert_allclose(np.sum(content["cv_predictions"], axis=1), 1.0)
    assert read(tmp_path / "performance.json")["classes"] == [0.0, 1.0, 2.0]


def test_all_predictions_schema(tmp_path: Path):
    result = run()
    save_sweep(result, tmp_path)
    content = read(tmp_path / "all_predictions.json")
    assert list(content) == ["positions", "predictions", "train_labels", "test_labels"]
    assert list(content["predictions"]) == KEYS
    cell = content["predictions"]["pos_-1_layer_2"]
    assert list(cell) == ["train_predictions", "test_predictions", "cv_predictions"]
    assert cell["cv_predictions"] == result.cv_predictions[1, 2, :, 0].tolist()
    assert set(content["predictions"]["pos_-1_layer_0"].values()) == {None}
    assert content["train_labels"] == LABELS.tolist()


def test_all_predictions_without_folds_or_test(tmp_path: Path):
    save_sweep(run(test=False, k_fold=False), tmp_path)
    content = read(tmp_path / "all_predictions.json")
    cell = content["predictions"]["pos_-2_layer_1"]
    assert (cell["test_predictions"], cell["cv_predictions"], content["test_labels"]) == (None, None, None)


def test_table_has_a_row_per_cell(tmp_path: Path):
    result = run()
    save_sweep(result, tmp_path)
    table = pd.read_parquet(tmp_path / "cells.parquet")
    assert list(table) == [
        *("layer", "position", "train_score", "test_score", "cv_score", "alpha", "status", "reason"),
        *("certificate", "solver", "nested_cv_score", "p", "p_uncorrected"),
    ]
    assert table["layer"].tolist() == [0, 5, 10] * 2
    assert table["position"].tolist() == [-2] * 3 + [-1] * 3
    pd.testing.assert_frame_equal(table, result.to_frame())
    constant = table[(table.layer == 0) & (table.position == -1)].iloc[0]
    assert (constant.status, pd.isna(constant.cv_score)) == ("CONSTANT_CELL", True)
    assert table["reason"].isna().sum() == 5
    assert table["solver"].dropna().tolist() == ["cholesky"] * 5
    assert (table["certificate"].dropna() <= 1e-14).all()


def test_probes_round_trip(tmp_path: Path):
    result = run(CLASSES, fit_intercept=True)
    save_sweep(result, tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "probes.safetensors")
    np.testing.assert_array_equal(tensors["coef"], result.coef)
    assert tensors["coef"].shape == (2, 3, 3, 6)
    assert tensors["coef"].dtype == np.float64
    assert tensors["intercept"].shape == (2, 3, 3)
    np.testing.assert_array_equal(tensors["intercept"], result.intercept)
    defined = ~np.isnan(tensors["intercept"]).any(-1)
    assert defined.sum() == 5
    assert tensors["intercept"][defined].any()
    with safetensors.safe_open(tmp_path / "probes.safetensors", "numpy") as file:
        metadata = {key: json.loads(value) for key, value in file.metadata().items()}
    assert (metadata["layers"], metadata["positions"]) == ([0, 5, 10], [-2, -1])
    assert metadata["classes"] == [0.0, 1.0, 2.0]


def test_a_best_probe_left_by_an_earlier_run_is_removed(tmp_path: Path):
    save_sweep(run(), tmp_path)
    assert (tmp_path / "best_probe_predictions.json").exists()
    save_sweep(run(k_fold=False), tmp_path)
    assert not (tmp_path / "best_probe_predictions.json").exists()


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    result = run()
    save_sweep(result, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_sweep(run(alpha=2.0), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_repr_names_the_best_cell_and_the_undefined_ones():
    text = repr(run())
    assert text.startswith("SweepResult: regression, spearman, 2 positions x 3 layers, 5-fold CV\n")
    assert re.search(r"best: layer 5, position -2, alpha 1: cv 0\.\d{4}, test 0\.\d{4}", text)
    assert "1 cells CONSTANT_CELL: every training row is identical here" in text
    assert "none chosen (needs k_fold=True)" in repr(run(k_fold=False))


@pytest.mark.slow
def test_probes_are_the_same_bytes_in_every_process():
    code = "import hashlib; from gpu_probes.results.saving import probes_bytes; "
    code += "from tests.gpu_probes.results.test_sweep_result import run; "
    code += "print(hashlib.sha256(probes_bytes(run(alphas=[0.1, 10.0]))).hexdigest())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    content = probes_bytes(run(alphas=GRID))
    assert other == hashlib.sha256(content).hexdigest() + "\n"
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    names = list(json.loads(content[8 : 8 + length])["__metadata__"])
    assert names == sorted(names)
