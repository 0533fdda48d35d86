"""A trained probe on new prompts gives what the training's own files say, from the model up."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import expit, logit

from gpu_probes import ProbeError
from probesweep import Probe, RequestError
from probesweep.prediction import score_dataset, score_texts
from tests.conftest import QUESTIONS, save_model
from tests.gpu_probes.result_folders import sign
from tests.test_cli import run

N_TRAIN, N_TEST = 44, 22


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model) -> Path:
    """Stores of a tiny model with three labels: numbers, two classes, three classes."""
    folder = tmp_path_factory.mktemp("predict")
    rng = np.random.default_rng(3)
    for split, copies in {"train": 4, "test": 2}.items():
        questions = [f"{question} ({split} {copy})" for copy in range(copies) for question in QUESTIONS]
        size = np.array([len(question) for question in questions])
        pd.DataFrame(
            {
                "question": questions,
                "success_rate": size / size.max() + 0.1 * rng.random(len(size)),
                "long": (size + rng.normal(0, 10, len(size)) > np.median(size)).astype(int),
                "kind": np.arange(len(size)) % 3,
            }
        ).to_parquet(folder / f"{split}.parquet")
        labels = [word for label in ("success_rate", "long", "kind") for word in ("--label_column", label)]
        done = run(
            "extract", "--model", tiny_model("llama"), "--dataset_path", folder / f"{split}.parquet", "--output_path",
            folder / f"{split}.zarr", "--use_chat_template", "--layers", "0,1,3", *labels,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def train(folder, tmp_path_factory) -> Callable[..., Path]:
    """Result folder of a training on a label, made once for the same options; not to be changed."""

    @cache
    def results(label: str, *options: str) -> Path:
        output = tmp_path_factory.mktemp("results")
        done = run(
            "train", "--train_activations", folder / "train.zarr", "--test_activations", folder / "test.zarr",
            "--output_dir", output, "--label_column", label, "--k_fold", "--alphas", "0.1,10", "--no_nested_cv",
            *options,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return output

    return results


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def prompts(folder: Path) -> list[str]:
    return pd.read_parquet(folder / "test.parquet")["question"].tolist()


@pytest.mark.parametrize("label", ["success_rate", "long", "kind"])
def test_predictions_are_those_of_the_stored_activations(folder, train, label):
    results = train(label)
    found = Probe.load(results).predict(prompts(folder))
    expected = np.array(read(results / "best_probe_predictions.json")["test_predictions"])
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("join", ["layers", "mean", "1@-1,3@-2"])
def test_joined_cells(folder, train, join):
    results = train("success_rate", "--join", join)
    expected = read(results / "best_probe_predictions.json")["test_predictions"]
    np.testing.assert_allclose(Probe.load(results).predict(prompts(folder)), expected, rtol=1e-4, atol=1e-5)


def test_numbers_are_calibrated_on_the_line_through_cross_validated_predictions(folder, train):
    results = train("success_rate")
    probe = Probe.load(results)
    best = read(results / "best_probe_predictions.json")
    slope, intercept = np.polyfit(best["cv_predictions"], best["train_actual"], 1)
    texts = prompts(folder)
    np.testing.assert_allclose(probe.score(texts), slope * probe.predict(texts) + intercept, rtol=1e-9)
    assert np.linalg.norm(probe.direction) == pytest.approx(1)
    np.testing.assert_allclose(probe.direction[0] * np.linalg.norm(best["probe_weights"]), best["probe_weights"])


def test_two_classes_are_calibrated_by_platt_scaling(folder, train):
    results = train("long")
    probe = Probe.load(results)
    platt = read(results / "inference.json")["platt"]
    texts = prompts(folder)
    expected = expit(platt["slope"] * logit(probe.predict(texts)) + platt["intercept"])
    np.testing.assert_allclose(probe.score(texts), expected, rtol=1e-9)
    assert probe.classes == (0.0, 1.0)


def test_one_prompt_and_many_agree_and_the_model_is_loaded_once(folder, train):
    probe = Probe.load(train("success_rate"), batch_size=5)
    texts = prompts(folder)
    together = probe.score(texts)
    one_by_one = np.concatenate([probe.score([text]) for text in texts])
    np.testing.assert_allclose(one_by_one, together, rtol=1e-4, atol=1e-5)
    assert probe._loaded is probe._loaded
    assert len(probe.score([])) == 0
    with pytest.raises(RequestError, match="brackets"):
        probe.score("Hi")


def test_the_command_adds_columns_to_the_dataset(folder, train, tmp_path):
    results = train("success_rate")
    for suffix, reader in {
        "parquet": pd.read_parquet,
        "csv": pd.read_csv,
        "jsonl": lambda path: pd.read_json(path, lines=True),
    }.items():
        output = tmp_path / f"new/scores.{suffix}"
        done = run("predict", "--probe", results, "--dataset", folder / "test.parquet", "--output", output)
        assert done.returncode == 0, done.stderr
        assert f"{N_TEST} rows" in done.stdout
        table, given = reader(output), pd.read_parquet(folder / "test.parquet")
        assert list(table) == [*given, "probe_score", "probe_prediction"]
        np.testing.assert_allclose(table["success_rate"], given["success_rate"])
        expected = read(results / "best_probe_predictions.json")["test_predictions"]
        assert stats.spearmanr(table["probe_score"], expected).statistic == pytest.approx(1, abs=1e-3)
        np.testing.assert_allclose(table["probe_prediction"], expected, rtol=1e-4, atol=1e-5)
    again = run(
        "predict", "--probe", results, "--dataset", tmp_path / "new/scores.parquet", "--output", tmp_path / "b.parquet"
    )
    assert again.returncode == 2
    assert "has a column 'probe_score' already" in again.stderr
    assert not (tmp_path / "b.parquet").exists()


@pytest.mark.parametrize(
    ("column", "values", "suffix", "wrong"),
    [
        ("probe_score", [1.0], "csv", "has a column 'probe_score' already"),
        ("notes", [["a", "b"]], "csv", "has a column that CSV cannot hold"),
        ("notes", [float("inf")], "jsonl", "has a NaN or infinity, which JSON cannot hold"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_model_runs(train, tmp_path, column, values, suffix, wrong):
    probe = Probe.load(train("success_rate"))
    pd.DataFrame({"question": ["Hi"], column: values}).to_parquet(tmp_path / "given.parquet")
    with pytest.raises(RequestError, match=wrong):
        score_dataset(probe, tmp_path / "given.parquet", tmp_path / f"scores.{suffix}")
    assert "_loaded" not in vars(probe)
    assert not (tmp_path / f"scores.{suffix}").exists()


def test_several_classes_get_a_column_each(folder, train, tmp_path):
    probe = Probe.load(train("kind"))
    table = score_dataset(probe, folder / "test.parquet", tmp_path / "s.parquet").to_pandas()
    columns = ["probe_score_0", "probe_score_1", "probe_score_2"]
    assert list(table)[-3:] == columns
    np.testing.assert_allclose(table[columns].sum(axis=1), 1)


def test_large_classes_keep_their_names(train, tmp_path):
    results = shutil.copytree(train("kind"), tmp_path / "copy")
    card = read(results / "probe.json")
    (results / "probe.json").write_text(json.dumps({**card, "classes": [1000001.0, 1000002.0, 0.1]}))
    sign(results)
    names = list(score_texts(Probe.load(results), ["Hi"]))
    assert names == ["text", "probe_score_1000001", "probe_score_1000002", "probe_score_0.1"]


def test_text_is_scored_at_the_terminal(train):
    results = train("success_rate")
    done = run("predict", "--probe", results, "--text", "Hi", "--text", "What is 2 + 3?", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["text"] for row in rows] == ["Hi", "What is 2 + 3?"]
    np.testing.assert_allclose(
        [row["probe_score"] for row in rows], Probe.load(results).score(["Hi", "What is 2 + 3?"]), rtol=1e-6
    )
    assert "probe_score" in run("predict", "--probe", results, "--text", "Hi").stdout


def test_only_the_model_of_the_training_is_read(train, tmp_path, tiny_model):
    results = train("success_rate")
    moved = shutil.copytree(tiny_model("llama"), tmp_path / "moved")
    np.testing.assert_array_equal(
        Probe.load(results, model=str(moved)).score(["Hi"]), Probe.load(results).score(["Hi"])
    )
    save_model(tmp_path / "other", "qwen2")
    done = run("predict", "--probe", results, "--text", "Hi", "--model", tmp_path / "other")
    assert done.returncode == 2
    assert "has another weights" in done.stderr


def test_what_has_no_probe_or_no_prompts_is_refused(folder, tmp_path):
    done = run(
        "train", "--train_activations", folder / "train.zarr", "--test_activations", folder / "test.zarr",
        "--output_dir", tmp_path / "plain", "--label_column", "long",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with pytest.raises(RequestError, match="has no best probe: it was trained without --k_fold"):
        Probe.load(tmp_path / "plain")
    with pytest.raises(RequestError, match="holds no finished training"):
        Probe.load(tmp_path)
    for split in ("train", "test"):
        assert run("export", folder / f"{split}.zarr", tmp_path / f"{split}.pt").returncode == 0
    done = run(
        "train", "--train_activations", tmp_path / "train.pt", "--test_activations", tmp_path / "test.pt",
        "--output_dir", tmp_path / "pt", "--k_fold",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with pytest.raises(RequestError, match="does not say how its prompts were made"):
        Probe.load(tmp_path / "pt")


def test_a_card_of_another_format_is_refused(train, tmp_path):
    results = shutil.copytree(train("success_rate"), tmp_path / "copy")
    card = read(results / "probe.json")
    for text, reason in (
        (json.dumps({**card, "format_version": 99}), "has format 99"),
        ("[]", "not a JSON object"),
        (json.dumps({**card, "layer": None}), "layer"),
    ):
        (results / "probe.json").write_text(text)
        with pytest.raises(ProbeError, match=r"is not as run\.json beside it says"):
            Probe.load(results)
        # A stranger's folder can hold anything under the right hash.
        sign(results)
        with pytest.raises((ProbeError, RequestError), match=reason):
            Probe.load(results)
