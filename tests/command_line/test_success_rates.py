"""Success rates of a few attempts as a user meets them: the ceiling, and binomial probes."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gpu_probes import score_ceiling
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
