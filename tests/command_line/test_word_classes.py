"""Classes that are words, from a CSV file of tweets to scores of new ones."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import special
from sklearn.metrics import confusion_matrix, roc_auc_score

from activation_store import ActivationStore
from gpu_probes.report import SavedResults
from probesweep import Probe, ProbesweepError
from probesweep.use.card import Card
from tests.helpers.commands import run
from tests.helpers.models import QUESTIONS
from tests.helpers.result_folders import sign

pytestmark = pytest.mark.slow
SENTIMENTS = ("negative", "neutral", "positive")


def tweets(copies: int, seed: int, names: tuple[str, ...] = SENTIMENTS) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    texts = [f"{question} {seed} {copy}" for copy in range(copies) for question in QUESTIONS]
    words = [names[len(text) * len(names) // 130 % len(names)] if rng.random() < 0.8 else names[0] for text in texts]
    words[: len(names)] = names
    return pd.DataFrame({"tweet": texts, "sentiment": words, "ironic": rng.random(len(texts)) < 0.5})


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model) -> Path:
    """Stores of tweets with sentiments and with a column of true and false, as CSV has them."""
    folder = tmp_path_factory.mktemp("tweets")
    for split, copies in {"train": 5, "test": 3}.items():
        table = tweets(copies, len(split), SENTIMENTS)
        table["liked"] = np.where(table["sentiment"] == "positive", "well liked", "not liked")
        table.to_csv(folder / f"{split}.csv", index=False)
        assert_done(extract(tiny_model, folder / f"{split}.csv", folder / f"{split}.zarr", "liked", "ironic"))
    return folder


def extract(tiny_model, dataset: Path, store: Path, *labels: str):
    named = [part for name in ("sentiment", *labels) for part in ("--label_column", name)]
    return run(
        "extract", "--model", tiny_model("llama"), "--dataset_path", dataset, "--output_path", store,
        "--question_column", "tweet", "--use_chat_template", "--layers", "1,2", *named,
    )  # fmt: skip


def train(folder: Path, output: Path, *options: object, train: str = "train", test: str = "test"):
    return run(
        "train", "--train_activations", folder / f"{train}.zarr", "--test_activations", folder / f"{test}.zarr",
        "--output_dir", output, "--k_fold", "--n_folds", 3, "--alpha", 1, *options,
    )  # fmt: skip


def assert_done(done) -> None:
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def results(folder, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("results")
    done = train(folder, output, "--label_column", "sentiment")
    assert_done(done)
    (output / "summary.txt").write_text(done.stdout + done.stderr)
    return output


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_the_store_keeps_the_words(folder):
    store = ActivationStore.open(folder / "train.zarr")
    given = pd.read_csv(folder / "train.csv")
    assert store.labels["sentiment"].tolist() == given["sentiment"].tolist()
    assert store.labels["sentiment"].cat.categories.tolist() == list(SENTIMENTS)
    assert store.labels["ironic"].tolist() == given["ironic"].tolist()
    assert store.attrs["label_classes"]["sentiment"] == {"names": list(SENTIMENTS), "ordered": False}
    done = run("inspect", folder / "train.zarr")
    count = (given["sentiment"] == "neutral").sum()
    assert re.search(rf"sentiment: \d+ 'negative', {count} 'neutral', ", done.stdout)


def test_results_have_the_names(folder, results):
    performance, card = read(results / "performance.json"), read(results / "probe.json")
    assert performance["class_names"] == card["class_names"] == list(SENTIMENTS)
    assert performance["averaging"] == "one-vs-rest, macro"
    best, found = read(results / "best_probe_predictions.json"), read(results / "inference.json")
    actual = pd.read_csv(folder / "test.csv")["sentiment"]
    assert [SENTIMENTS[int(place)] for place in best["test_actual"]] == actual.tolist()
    auc = roc_auc_score(actual, best["test_predictions"], multi_class="ovr", average="macro", labels=SENTIMENTS)
    assert best["test_score"] == pytest.approx(auc)
    for split, rows in (("cv", "train"), ("test", "test")):
        words = pd.read_csv(folder / f"{rows}.csv")["sentiment"]
        chosen = np.array(SENTIMENTS)[np.argmax(best[f"{split}_predictions"], axis=1)]
        assert found["scores"][split]["confusion"] == confusion_matrix(words, chosen, labels=SENTIMENTS).tolist()
        assert [one["support"] for one in found["scores"][split]["by_class"]] == [
            (words == name).sum() for name in SENTIMENTS
        ]


def test_summary_and_report_show_them(results):
    summary = (results / "summary.txt").read_text()
    assert "(roc_auc, one-vs-rest, macro)" in summary
    for name in SENTIMENTS:
        assert re.search(rf"(?m)^{name} +\d+ ", summary)
    assert_done(run("report", results))
    page = (results / "report.html").read_text()
    assert "the 3 classes of sentiment (negative, neutral, positive)" in page
    assert "ROC-AUC, one-vs-rest, macro" in page
    assert '<th scope="col">predicted neutral</th>' in page
    assert "class positive" in page
    assert "one-vs-rest, macro" in repr(SavedResults.load(results))


def test_new_tweets_get_calibrated_probabilities_and_a_word(folder, results, tmp_path):
    done = run(
        "predict", "--probe", results, "--dataset_path", folder / "test.csv", "--output_path", tmp_path / "s.csv"
    )
    assert_done(done)
    scores = pd.read_csv(tmp_path / "s.csv")
    named = [f"probe_{what}_{name}" for what in ("score", "rank") for name in SENTIMENTS]
    assert scores.columns.tolist() == ["tweet", "sentiment", "ironic", "liked", *named, "predicted_class"]
    card, best = read(results / "probe.json"), read(results / "best_probe_predictions.json")
    temperature = card["calibration"]["temperature"]
    assert card["calibration"]["kind"] == "temperature"
    expected = special.softmax(np.log(best["test_predictions"]) / temperature, axis=1)
    np.testing.assert_allclose(scores[named[:3]], expected, rtol=1e-3, atol=1e-4)
    chosen = np.argmax(best["test_predictions"], axis=1)
    assert scores["predicted_class"].tolist() == [SENTIMENTS[place] for place in chosen]
    probe = Probe.load(results)
    assert probe.class_names == SENTIMENTS
    np.testing.assert_allclose(probe.score(scores["tweet"].tolist()[:2]), expected[:2], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("inference.json", ("temperature", "temperature"), 9.0, "it is not that of the held-out predictions"),
        ("inference.json", ("scores", "cv", "by_class", 0, "support"), 3, "where the list of labels has"),
        ("inference.json", ("scores", "test", "confusion", 1, 1), 999, "where the list of labels has"),
        ("inference.json", ("scores", "test", "by_class", 2, "name"), "happy", "where performance.json has"),
        ("performance.json", ("class_names",), ["a", "b"], "there are not as many names as classes"),
        ("performance.json", ("positive_class",), "neutral", "it is not the last of two classes"),
        ("probe.json", ("class_names", 0), "sad", "where the other files have"),
    ],
)
def test_files_that_contradict_each_other_are_refused(results, tmp_path, name, place, value, message):
    shutil.copytree(results, tmp_path / "r")
    content = part = read(tmp_path / "r" / name)
    for step in place[:-1]:
        part = part[step]
    part[place[-1]] = value
    (tmp_path / "r" / name).write_text(json.dumps(content))
    sign(tmp_path / "r")
    with pytest.raises(ProbesweepError, match=message):
        Card.load(tmp_path / "r")


def test_scores_on_another_store_are_matched_by_name(folder, results, tmp_path):
    assert_done(run("transfer", results, folder / "test.zarr", "--output_path", tmp_path / "scores.json"))
    [[found]] = read(tmp_path / "scores.json")["probes"].values()
    assert found["best"] == pytest.approx(read(results / "best_probe_predictions.json")["test_score"])


@pytest.mark.parametrize("positive", [None, "not liked"])
def test_two_classes_have_columns_of_the_positive_one(folder, tmp_path, positive):
    chosen = [] if positive is None else ["--positive_class", positive]
    assert_done(train(folder, tmp_path / "r", "--label_column", "liked", "--no_nested_cv", *chosen))
    scored, other = ("well liked", "not liked") if positive is None else ("not liked", "well liked")
    performance = read(tmp_path / "r/performance.json")
    assert (performance["class_names"], performance["positive_class"]) == ([other, scored], scored)
    rows = folder / "test.csv", tmp_path / "s.jsonl"
    assert_done(run("predict", "--probe", tmp_path / "r", "--dataset_path", rows[0], "--output_path", rows[1]))
    scores = pd.read_json(tmp_path / "s.jsonl", lines=True)
    end = scored.replace(" ", "_")
    assert scores.columns.tolist()[-4:] == [*(f"probe_{what}_{end}" for what in ("score", "prediction", "rank")),
                                            "predicted_class"]  # fmt: skip
    best = read(tmp_path / "r/best_probe_predictions.json")
    np.testing.assert_allclose(scores[f"probe_prediction_{end}"], best["test_predictions"], rtol=1e-3, atol=1e-4)
    assert scores["predicted_class"].tolist() == [scored if p > 0.5 else other for p in best["test_predictions"]]
    right = pd.read_csv(folder / "test.csv")["liked"] == scored
    assert best["test_score"] == pytest.approx(roc_auc_score(right, best["test_predictions"]))


def test_words_joined_from_files_are_the_same_classes(folder, results, tmp_path):
    options = {"train": [], "test": []}
    for split, parts in {"train": 2, "test": 1}.items():
        given = pd.read_csv(folder / f"{split}.csv")[["tweet", "sentiment"]].rename(columns={"sentiment": "mood"})
        for number, rows in enumerate(np.array_split(np.arange(len(given)), parts)):
            given.iloc[rows].to_csv(tmp_path / f"{split}{number}.csv", index=False)
            options[split].append(tmp_path / f"{split}{number}.csv")
    files = [part for path in options["train"] for part in ("--labels", path)]
    files += ["--test_labels", options["test"][0], "--label_column", "mood"]
    assert_done(train(folder, tmp_path / "r", "--no_nested_cv", *files))
    found, expected = (read(where / "performance.json") for where in (tmp_path / "r", results))
    assert found["class_names"] == list(SENTIMENTS)
    assert found["layer_performance"]["test"] == expected["layer_performance"]["test"]


def test_booleans_keep_their_names(folder, tmp_path):
    assert_done(train(folder, tmp_path / "r", "--label_column", "ironic", "--no_nested_cv"))
    performance = read(tmp_path / "r/performance.json")
    assert (performance["class_names"], performance["classes"]) == (["false", "true"], [0.0, 1.0])


def test_a_test_store_with_other_places_is_matched_by_name(folder, tmp_path, tiny_model):
    given = pd.read_csv(folder / "test.csv")
    given[given["sentiment"] != "negative"].to_csv(folder / "fewer.csv", index=False)
    assert_done(extract(tiny_model, folder / "fewer.csv", folder / "fewer.zarr"))
    assert ActivationStore.open(folder / "fewer.zarr").coordinate("sentiment").max() == 1
    assert_done(train(folder, tmp_path / "r", "--label_column", "sentiment", "--no_nested_cv", test="fewer"))
    places = read(tmp_path / "r/best_probe_predictions.json")["test_actual"]
    expected = given.loc[given["sentiment"] != "negative", "sentiment"].tolist()
    assert [SENTIMENTS[int(place)] for place in places] == expected


def test_what_cannot_be_trained_on_is_one_line(folder, tmp_path, tiny_model):
    given = pd.read_csv(folder / "test.csv")
    given.replace("neutral", "mixed").to_csv(folder / "other.csv", index=False)
    assert_done(extract(tiny_model, folder / "other.csv", folder / "other.zarr"))
    done = train(folder, tmp_path / "r", "--label_column", "sentiment", test="other")
    assert done.returncode == 2
    expected = r"error: test label 'sentiment' has \d+ labels that training never saw \(first: 'mixed' in row .*\n"
    assert re.fullmatch(expected, done.stderr), done.stderr
    for options, message in (
        (("--positive_class", "positive"), r"error: --positive_class positive is for two classes, and .*has 3 .*\n"),
        (("--task_type", "regression"), r"error: train label 'sentiment' are words .*--task_type classification.*\n"),
        (("--weight_column", "liked"), r"error: sample_weight has 55 text values .*\n"),
    ):
        done = train(folder, tmp_path / "r", "--label_column", "sentiment", *options)
        assert done.returncode == 2
        assert re.fullmatch(message, done.stderr), done.stderr
    given.assign(sentiment="0.5").to_parquet(tmp_path / "text.parquet")
    done = extract(tiny_model, tmp_path / "text.parquet", tmp_path / "text.zarr")
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*has 33 numbers stored as text, the first in row 0 \('0.5'\).*\n", done.stderr)
    assert not (tmp_path / "text.zarr").exists()


def test_words_are_not_exported_as_numbers_that_differ_between_files(folder, tmp_path):
    done = run("export", folder / "train.zarr", tmp_path / "train.pt", "--label_column", "sentiment")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: label 'sentiment' is words, which a .pt cannot hold; export a label of numbers"
    )
    assert not list(tmp_path.iterdir())
    store = ActivationStore.open(folder / "train.zarr")
    assert store.to_xarray()["sentiment"].to_numpy().tolist() == store.labels["sentiment"].tolist()
