"""Success rates of a few attempts as a user meets them: the ceiling, and binomial probes."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gpu_probes import score_ceiling
from gpu_probes.report.paper import methods
from gpu_probes.results.documents import Results
from probesweep import Probe
from tests.helpers.commands import run
from tests.helpers.models import QUESTIONS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stores(tmp_path_factory, tiny_model) -> Path:
    """Rates of 4 or 8 attempts, their counts, and a column beside them."""
    folder = tmp_path_factory.mktemp("rates")
    rng = np.random.default_rng(0)
    for split, copies in (("train", 4), ("test", 3)):
        questions = [f"{question} ({split} {copy})" for copy in range(copies) for question in QUESTIONS]
        n_samples = np.resize([4, 8], len(questions))
        n_correct = rng.binomial(n_samples, rng.beta(0.7, 0.7, len(questions)))
        table = {
            "question": questions,
            "success_rate": n_correct / n_samples,
            "n_samples": n_samples,
            "n_correct": n_correct,
            "often": (n_correct / n_samples > 0.5).astype(int),
            "other": rng.standard_normal(len(questions)),
        }
        pd.DataFrame(table).to_parquet(folder / f"{split}.parquet")
        columns = [word for name in list(table)[1:] for word in ("--label_column", name)]
        done = run(
            "extract", "--model", tiny_model("llama"), "--dataset_path", folder / f"{split}.parquet",
            "--output_path", folder / f"{split}.zarr", "--use_chat_template", "--layers", "0,1,3", *columns,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return folder


def train(stores: Path, output: Path, *options: object):
    return run(
        "train", "--train_activations", stores / "train.zarr", "--test_activations", stores / "test.zarr",
        "--output_dir", output, "--k_fold", "--n_folds", "3", *options,
    )  # fmt: skip


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def ridge(stores: Path) -> tuple[Path, str]:
    done = train(stores, stores / "ridge", "--label_column", "success_rate")
    assert done.returncode == 0, done.stderr
    return stores / "ridge", done.stdout


def test_the_ceiling_of_each_lot_is_written_and_said(stores: Path, ridge: tuple[Path, str]):
    folder, summary = ridge
    found = read(folder / "inference.json")["ceiling"]
    assert set(found) == {"train", "test"}
    for split, one in found.items():
        table = pd.read_parquet(stores / f"{split}.parquet")
        expected = score_ceiling(table["n_correct"], table["n_samples"], seed=42)
        assert one["scores"] == {name: interval.to_json() for name, interval in expected.items()}
        assert (one["fewest_samples"], one["most_samples"], one["threshold"], one["reason"]) == (4, 8, None, None)
    test = found["test"]["scores"]["spearman"]
    ends = f"{test['estimate']:.3f}  [{test['low']:.3f}, {test['high']:.3f}]"
    assert f"Ceiling, the best test score on labels of 4 to 8 attempts: {ends}." in summary
    assert "Ceiling, the best CV score on labels of 4 to 8 attempts: " in summary


def test_table_and_report_have_the_ceiling(ridge: tuple[Path, str]):
    folder, _ = ridge
    found = read(folder / "inference.json")["ceiling"]
    (row,) = json.loads(run("table", folder, "--json").stdout)
    for key, split in (("cv_ceiling", "train"), ("test_ceiling", "test")):
        assert row[key] == found[split]["scores"]["spearman"]["estimate"]
        assert row[f"{key}_low"] == found[split]["scores"]["spearman"]["low"]
    assert "ceiling, test [95 %]" in run("table", folder).stdout.replace("\\", "")
    assert run("report", folder).returncode == 0
    page = (folder / "report.html").read_text()
    assert "Labels are shares of 4 to 8 attempts per question, and so partly luck" in page
    assert "the ceiling of these labels, 95 % interval" in page


def test_counts_are_no_labels_unless_they_are_named(stores: Path, tmp_path: Path):
    assert train(stores, tmp_path).returncode == 0
    assert {one.name for one in tmp_path.iterdir() if one.is_dir()} == {"success_rate", "often", "other"}
    for split, one in read(tmp_path / "often/inference.json")["ceiling"].items():
        rate = pd.read_parquet(stores / f"{split}.parquet")["success_rate"]
        assert one["threshold"] == (rate[rate <= 0.5].max() + rate[rate > 0.5].min()) / 2
        assert set(one["scores"]) == {"roc_auc"}
    assert "ceiling" not in read(tmp_path / "other/inference.json")


def test_a_ceiling_that_is_unknown_says_why(stores: Path, tmp_path: Path):
    table = pd.concat([pd.read_parquet(stores / f"{split}.parquet") for split in ("train", "test")])
    table["n_correct"] += 0.25
    table["success_rate"] = table["n_correct"] / table["n_samples"]
    table[["question", "success_rate", "n_samples", "n_correct"]].to_parquet(tmp_path / "labels.parquet")
    done = train(stores, tmp_path / "out", "--label_column", "success_rate", "--labels", tmp_path / "labels.parquet")
    assert done.returncode == 0, done.stderr
    found = read(tmp_path / "out/inference.json")["ceiling"]["test"]
    assert "which is no number of attempts" in found["reason"]
    assert "No ceiling of the test score: n_correct is " in done.stdout
    used = read(tmp_path / "out/run.json")["request"]["test"]["labels"]["columns"]
    assert used == ["success_rate", "n_samples", "n_correct"]


def test_a_binomial_probe_from_training_to_prediction(stores: Path, tmp_path: Path):
    out = tmp_path / "out"
    options = ("--label_column", "success_rate", "--probe", "binomial", "--alphas", "1,100")
    done = train(stores, out, *options, "--permutations", "19")
    assert done.returncode == 0, done.stderr
    assert "regression (binomial, rows weighted by n_samples)" in done.stdout
    assert "over all cells, by least squares on the rates: p = " in done.stdout
    run_json = read(out / "run.json")
    assert run_json["request"]["options"]["weight_column"] == "n_samples"
    named = train(stores, tmp_path / "named", *options, "--permutations", "19", "--weight_column", "n_samples")
    assert named.returncode == 0, named.stderr
    assert (tmp_path / "named/probes.safetensors").read_bytes() == (out / "probes.safetensors").read_bytes()
    # A finished training is not repeated.
    assert train(stores, out, *options, "--permutations", "19").returncode == 0
    assert read(out / "run.json") == run_json
    card, inference = read(out / "probe.json"), read(out / "inference.json")
    assert (card["probe"], card["task_type"]) == ("binomial", "regression")
    assert card["calibration"]["kind"] == ("platt" if inference["platt"]["slope"] else None)
    assert "rows weighted by n_samples" in methods(Results.load(out))
    probe = Probe.load(out)
    prompts = pd.read_parquet(stores / "test.parquet")["question"].tolist()
    best = read(out / "best_probe_predictions.json")
    np.testing.assert_allclose(probe.predict(prompts), best["test_predictions"], atol=1e-4)
    scores = probe.score(prompts)
    assert ((scores > 0) & (scores < 1)).all()
    assert run("report", out).returncode == 0
    assert "A binomial probe was fitted" in (out / "report.html").read_text()
    moved = run("transfer", out, stores / "test.zarr", "--output_path", tmp_path / "t.json")
    assert moved.returncode == 0, moved.stderr
    (found,) = next(iter(read(tmp_path / "t.json")["probes"].values()))
    assert found["best"] == pytest.approx(best["test_score"])


def test_labels_that_are_no_rates_are_one_line(stores: Path, tmp_path: Path):
    done = train(stores, tmp_path, "--label_column", "other", "--probe", "binomial")
    assert done.returncode == 2
    assert "values outside 0 to 1 (first: " in done.stderr
    assert "--probe binomial is for rates" in done.stderr
    assert "Traceback" not in done.stderr
