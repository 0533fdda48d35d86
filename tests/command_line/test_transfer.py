"""Trained probes on other stores: of several models, with all that a score needs to be believed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.metrics import brier_score_loss, roc_auc_score

from activation_store import ActivationStore, export_pt
from gpu_probes import SavedProbes
from gpu_probes.forms import plain
from probesweep import RequestError
from probesweep.transferring import transfer
from tests.helpers.commands import run
from tests.helpers.models import QUESTIONS, save_model

pytestmark = pytest.mark.slow

TOML = """\
output_dir = "{name}"
[model]
model = "{model}"
[data]
train_dataset = "train.parquet"
test_dataset = "test.parquet"
label_column = ["success_rate", "right"]
group_column = "topic"
use_chat_template = true
layers = [0, 1]
[probe]
alphas = [1, 100]
[statistics]
k_fold = true
n_folds = 3
nested_cv = false
"""


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_model) -> Path:
    """Results of `probesweep run` for two models, in the tool's own layout."""
    folder = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(0)
    for split, copies in {"train": 4, "test": 3}.items():
        questions = [f"{question} ({split} {copy})" for copy in range(copies) for question in QUESTIONS]
        size = np.array([len(question) for question in questions])
        pd.DataFrame(
            {
                "question": questions,
                "success_rate": size / size.max() + 0.3 * rng.random(len(size)),
                "right": (size + rng.normal(0, 20, len(size)) > np.median(size)).astype(int),
                "topic": [f"t{row % 11}" for row in range(len(size))],
            }
        ).to_parquet(folder / f"{split}.parquet")
    save_model(folder / "other", "qwen2")
    for name, model in {"a": tiny_model("llama"), "b": folder / "other"}.items():
        (folder / f"{name}.toml").write_text(TOML.format(name=f"models/{name}", model=model))
        done = run("run", folder / f"{name}.toml", "--quiet")
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def moved(models):
    """All probes on all stores: the document, and what is printed."""
    stores = [models / f"models/{name}/{split}.zarr" for name in "ab" for split in ("train", "test")]
    done = run("transfer", models / "models", *stores, "--output_path", models / "transfer.json")
    assert done.returncode == 0, done.stderr
    return read(models / "transfer.json"), done.stdout


def test_probes_of_the_tools_own_layout_are_found_and_other_models_left_empty(models, moved):
    document, printed = moved
    folders = [models / f"models/{name}/probes/{label}" for name in "ab" for label in ("right", "success_rate")]
    assert sorted(document["probes"]) == sorted(map(str, folders))
    for folder, row in document["probes"].items():
        own = "/a/" not in folder
        for store, one in zip(document["stores"], row, strict=True):
            fits = ("/b/" in store) == own
            assert (one["best"] is not None) == (one["scores"] is not None) == (one["reason"] is None) == fits
            if not fits:
                assert f"another model than that of {store} (weights differ)" in one["reason"]
                assert f"\n{one['reason']}\n" in printed
    for folder in folders:
        best = read(folder / "best_probe_predictions.json")
        scored = next(one for one in document["probes"][str(folder)] if one["best"] is not None and one["n"] == 33)
        assert scored["best"] == pytest.approx(best["test_score"])
        assert f"{best['test_score']:.3f}" in printed


def own(document: dict, models: Path, label: str) -> dict:
    """Model a's probe on its test store."""
    place = document["stores"].index(str(models / "models/a/test.zarr"))
    return document["probes"][str(models / f"models/a/probes/{label}")][place]


@pytest.mark.parametrize("label", ["success_rate", "right"])
def test_scores_are_those_of_the_training_on_its_own_test_rows(label, models, moved):
    """Interval, baselines and leads, each with the same rows and the same seed as there."""
    found, folder = own(moved[0], models, label), models / f"models/a/probes/{label}"
    inference = read(folder / "inference.json")
    assert found["interval"] == pytest.approx(inference["intervals"]["test_score"])
    assert found["baselines"].keys() == {"prompt_length", "tfidf"}
    for name, one in found["baselines"].items():
        expected = inference["baselines"][name]
        assert one["test_score"] == pytest.approx(expected["test_score"], abs=1e-6)
        assert one["difference"]["low"] == pytest.approx(expected["difference"]["low"], abs=1e-6)
    strongest = max(found["baselines"].values(), key=lambda one: one["test_score"])
    assert f"{strongest['title']} {strongest['test_score']:.3f}" in moved[1]


def test_baselines_are_fitted_to_the_training_rows(models, moved):
    train, test = (pd.read_parquet(models / f"{split}.parquet") for split in ("train", "test"))
    words = TfidfVectorizer(sublinear_tf=True).fit(train["question"])
    both = [words.transform(table["question"]) for table in (train, test)]
    scores = [
        spearmanr(Ridge(alpha).fit(both[0], train["success_rate"]).predict(both[1]), test["success_rate"]).statistic
        for alpha in (0.1, 1, 10, 100)
    ]
    found = own(moved[0], models, "success_rate")["baselines"]
    assert min(abs(found["tfidf"]["test_score"] - score) for score in scores) < 1e-9
    lengths = ActivationStore.open(models / "models/a/test.zarr").n_tokens
    expected = spearmanr(lengths, test["success_rate"]).statistic
    assert abs(found["prompt_length"]["test_score"]) == pytest.approx(abs(expected))


def test_calibration_is_of_what_predict_returns(models, moved):
    """A line for numbers, Platt scaling for classes, as the training fitted them."""
    test = pd.read_parquet(models / "test.parquet")
    for label in ("success_rate", "right"):
        folder, found = models / f"models/a/probes/{label}", own(moved[0], models, label)["calibration"]
        store = ActivationStore.open(models / "models/a/test.zarr")
        probes, fit = SavedProbes.load(folder), read(folder / "probe.json")["calibration"]
        assert fit["kind"] == found["kind"] is not None
        line = fit["slope"] * probes.decide(store, probes.best)[:, 0] + fit["intercept"]
        predicted = line if label == "success_rate" else 1 / (1 + np.exp(-line))
        assert found["bias"] == pytest.approx(predicted.mean() - test[label].mean())
        if label == "success_rate":
            assert found["scores"]["mae"] == pytest.approx(np.abs(predicted - test[label]).mean())
            assert f"MAE {found['scores']['mae']:.3f}, bias {found['bias']:+.3f}" in moved[1]
        else:
            assert found["scores"]["brier"] == pytest.approx(brier_score_loss(test[label], predicted))
            assert found["scores"]["roc_auc"] == pytest.approx(roc_auc_score(test[label], predicted))
            assert f"ECE {found['scores']['ece']:.3f}" in moved[1]


def test_rows_that_were_trained_on_are_counted(models, moved):
    document, printed = moved
    place = document["stores"].index(str(models / "models/a/train.zarr"))
    found = document["probes"][str(models / "models/a/probes/right")][place]
    assert (found["n"], found["n_in_training"]) == (44, 44)
    assert "44 (44 trained on)" in printed
    assert own(document, models, "right")["n_in_training"] == 0


def test_intervals_resample_whole_groups(models, tmp_path):
    stores = [models / f"models/a/{split}.zarr" for split in ("train", "test")]
    done = run(
        "train", "--train_activations", stores[0], "--test_activations", stores[1], "--output_dir", tmp_path,
        "--label_column", "success_rate", "--k_fold", "--n_folds", 3, "--groups", "topic", "--no_nested_cv",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ((found,),) = transfer(tmp_path, [stores[1]]).scores
    assert plain(found.interval) == pytest.approx(read(tmp_path / "inference.json")["intervals"]["test_score"])
    assert "made of 11 groups only" in found.interval.note


def test_without_the_training_rows_there_are_no_baselines(models, tmp_path):
    results, store = tmp_path / "results", models / "models/a/test.zarr"
    shutil.copytree(models / "models/a/train.zarr", tmp_path / "train.zarr")
    done = run(
        "train", "--train_activations", tmp_path / "train.zarr", "--test_activations", store, "--output_dir", results,
        "--label_column", "right", "--k_fold", "--no_nested_cv",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "train.zarr")
    ((found,),) = transfer(results, [store]).scores
    assert found.baselines == {}
    assert "the training rows are not there" in found.no_baselines
    assert found.interval.low < found.best < found.interval.high
    assert found.n_in_training is None


def test_activations_that_do_not_name_their_model_are_told_by_their_width(models, tmp_path):
    """A `.pt` has no prompts either, and so no baselines."""
    export_pt(ActivationStore.open(models / "models/a/test.zarr"), tmp_path / "test.pt")
    found = transfer(models / "models/a/probes/success_rate", [tmp_path / "test.pt"])
    ((one,),) = found.scores
    best = read(models / "models/a/probes/success_rate/best_probe_predictions.json")
    assert one.best == pytest.approx(best["test_score"], abs=1e-5)
    assert "holds no prompts" in one.no_baselines
    assert "test.pt" in str(found)


def test_where_no_store_fits_any_probe_it_is_an_error(models):
    with pytest.raises(RequestError, match="were trained on another model"):
        transfer(models / "models/a/probes", [models / "models/b/test.zarr"])
