"""Test rows from the training store, or none at all."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from activation_store import ActivationStore
from gpu_probes import ArrayCellSource, sweep
from gpu_probes.results.transfer import find_trainings
from gpu_probes.samples.groups import normalised
from probesweep.sharing.hub_cards import results_card
from probesweep.tracking.record import read_record
from tests.helpers.commands import run
from tests.helpers.models import QUESTIONS

pytestmark = pytest.mark.slow
N_ROWS = 48


@pytest.fixture(scope="module")
def store(tmp_path_factory, tiny_model) -> Path:
    """A store in which prompts repeat, with a column that says what to test on; not to be changed."""
    folder = tmp_path_factory.mktemp("one")
    rng = np.random.default_rng(0)
    questions = [f"{QUESTIONS[row % 11]} ({row // 11})" for row in range(N_ROWS - 4)]
    questions += [question.upper() for question in questions[:4]]
    table = {
        "question": questions,
        "success_rate": rng.random(N_ROWS),
        "part": ["test" if row % 4 == 3 else "train" for row in range(N_ROWS)],
        "subject": [f"s{row % 10}" for row in range(N_ROWS)],
    }
    pd.DataFrame(table).to_parquet(folder / "d.parquet")
    done = run(
        "extract", "--model", tiny_model("llama"), "--dataset_path", folder / "d.parquet", "--output_path",
        folder / "s.zarr", "--use_chat_template", "--layers", "1,2", "--group_column", "part",
        "--group_column", "subject",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "s.zarr"


def train(store: Path, output: Path, *options: object):
    return run(
        "train", "--train_activations", store, "--output_dir", output, "--k_fold", "--n_folds", 3, "--positions",
        "-2..-1", *options,
    )  # fmt: skip


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def rows_of(folder: Path) -> dict[str, list[int]]:
    request = read(folder / "run.json")["request"]
    return {split: request[split]["rows"] for split in ("train", "test")}


def test_rows_by_number_and_by_a_column_are_those_of_two_sources(store, tmp_path):
    tested = np.arange(N_ROWS) % 4 == 3
    opened = ActivationStore.open(store)
    parts = [ArrayCellSource(opened[:][rows][:, :, -2:], [1, 2], [-2, -1]) for rows in (~tested, tested)]
    labels = [opened.labels["success_rate"][rows] for rows in (~tested, tested)]
    prompts = [text for text, held in zip(opened.questions, tested, strict=True) if not held]
    expected = sweep(parts[0], labels[0], parts[1], labels[1], k_fold=True, n_folds=3, prompts=prompts, device="cpu")
    done = train(store, tmp_path / "column", "--test_rows", "part=test")
    assert done.returncode == 0, done.stderr
    best = read(tmp_path / "column/best_probe_predictions.json")
    assert best["test_score"] == expected.best.test_score
    assert best["cv_score"] == expected.best.cv_score
    assert best["test_actual"] == labels[1].tolist()
    sides = {"train": np.flatnonzero(~tested).tolist(), "test": np.flatnonzero(tested).tolist()}
    assert rows_of(tmp_path / "column") == sides
    done = train(store, tmp_path / "rows", "--test_rows", ",".join(map(str, np.flatnonzero(tested))))
    assert done.returncode == 0, done.stderr
    for name in ("performance.json", "inference.json", "run.json"):
        assert (tmp_path / "rows" / name).read_bytes() == (tmp_path / "column" / name).read_bytes()
    # Rows of the page are those of the store, with their prompts.
    done = run("report", tmp_path / "rows")
    assert done.returncode == 0, done.stderr
    assert opened.questions[3] in (tmp_path / "rows/report.html").read_text()
    moved = run("transfer", tmp_path / "rows", store)
    assert moved.returncode == 0, moved.stderr


def test_a_drawn_part_keeps_groups_and_repeated_prompts_whole(store, tmp_path):
    done = train(store, tmp_path / "out", "--test_fraction", 0.3, "--groups", "subject")
    assert done.returncode == 0, done.stderr
    rows, opened = rows_of(tmp_path / "out"), ActivationStore.open(store)
    assert sorted([*rows["train"], *rows["test"]]) == list(range(N_ROWS))
    subjects, prompts = opened.coordinate("subject"), [normalised(text) for text in opened.questions]
    for values in (subjects, prompts):
        assert not {values[row] for row in rows["train"]} & {values[row] for row in rows["test"]}
    assert 0.1 < len(rows["test"]) / N_ROWS < 0.5
    assert read(tmp_path / "out/inference.json")["overlap"]["n_shared"] == 0
    # Another seed draws other rows; nothing else decides.
    train(store, tmp_path / "again", "--test_fraction", 0.3, "--groups", "subject", "--alpha", 7)
    assert rows_of(tmp_path / "again") == rows
    train(store, tmp_path / "other", "--test_fraction", 0.3, "--groups", "subject", "--seed", 1)
    assert rows_of(tmp_path / "other") != rows


def test_without_a_test_set_nested_cv_stands_alone(store, tmp_path):
    done = train(store, tmp_path / "out", "--permutations", 9)
    assert done.returncode == 0, done.stderr
    assert "There is no test set." in done.stdout
    assert "Nested CV, the score to publish" in done.stdout
    assert read(tmp_path / "out/run.json")["request"]["test"] is None
    best, evidence = (read(tmp_path / "out" / name) for name in ("best_probe_predictions.json", "inference.json"))
    assert (best["test_score"], best["test_actual"], best["test_predictions"]) == (None, None, None)
    assert evidence["overlap"]["reason"] == "there is no test set"
    assert {"prompt_length", "tfidf", "random_direction", "random_labels"} <= set(evidence["baselines"])
    assert all(one["test_score"] is None for one in evidence["baselines"].values())
    assert all(evidence["baselines"][name]["cv_score"] is not None for name in ("prompt_length", "tfidf"))
    # With a test set, all else is the same.
    assert train(store, tmp_path / "tested", "--permutations", 9, "--test_activations", store).returncode == 0
    tested = read(tmp_path / "tested/inference.json")
    for name in ("nested_cv", "permutation", "calibration"):
        assert evidence[name] == tested[name]
    for name, one in evidence["baselines"].items():
        assert one["cv_score"] == tested["baselines"][name]["cv_score"]
    # What reads it says so.
    done = run("report", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "There is no test set" in (tmp_path / "out/report.html").read_text()
    assert "There was no test set." in (tmp_path / "out/report.html").read_text()
    assert run("table", tmp_path / "out").returncode == 0
    assert "test rows, SHA-256 of the store's journal | none" in results_card(find_trainings(tmp_path / "out"))
    assert "test_content" not in read_record(tmp_path / "out", tmp_path).settings
    assert run("transfer", tmp_path / "out", store).returncode == 0
    done = run("predict", "--probe", tmp_path / "out", "--text", "Hi")
    assert done.returncode == 0, done.stderr
    again = train(store, tmp_path / "out", "--permutations", 9)
    assert again.stdout == run("train", "--train_activations", store, "--output_dir", tmp_path / "out", "--k_fold",
                               "--n_folds", 3, "--positions", "-2,-1", "--permutations", 9).stdout  # fmt: skip


def test_classes_without_a_test_set(store, tmp_path):
    labels = pd.DataFrame({"right": np.arange(N_ROWS) % 2})
    labels.to_csv(tmp_path / "l.csv", index=False)
    done = train(store, tmp_path / "out", "--labels", tmp_path / "l.csv", "--label_column", "right")
    assert done.returncode == 0, done.stderr
    assert "test" not in read(tmp_path / "out/inference.json")["scores"]
    assert run("report", tmp_path / "out").returncode == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--test_rows", "0-99"), "has rows 0 to 47, not 99"),
        (("--test_rows", "x"), "'x' is no row; write rows such as 0-99,200"),
        (("--test_rows", "part=dev"), "leaves nothing to test on; 'part' holds test, train"),
        (("--test_rows", "kind=test"), "has no column 'kind'; it holds success_rate, part, subject"),
        (("--test_rows", "0-47"), "leaves nothing to train on"),
        (("--test_fraction", "1.5"), "--test_fraction 1.5 must be between 0 and 1, such as 0.2"),
        (("--test_fraction", "0.2", "--test_rows", "1"), "--test_rows and --test_fraction both say what to test on"),
        (("--test_fraction", "0.2", "--groups", "author"), "has no column 'author' to group by (--groups)"),
        (("--drop_overlap",), "--drop_overlap is about prompts of other test rows"),
        (("--test_labels", "x.csv"), "--test_labels needs --labels as well"),
        (("--max_samples", "3"), "--max_samples is about a file of labels; give --labels, too"),
    ],
)
def test_mistakes_are_one_line(options, message, store, tmp_path):
    done = train(store, tmp_path / "out", *options)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_something_has_to_be_scored(store, tmp_path):
    done = run("train", "--train_activations", store, "--output_dir", tmp_path / "out")
    assert done.returncode == 2
    assert "neither cross-validation nor anything to test on" in done.stderr
