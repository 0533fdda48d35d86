"""Labels, groups and weights from a file: the same as if the store had them, and one line for what does not fit."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from activation_store import ActivationStore
from probesweep import RequestError, Training
from tests.helpers.commands import run
from tests.helpers.models import QUESTIONS

pytestmark = pytest.mark.slow
N_COPIES = {"train": 3, "test": 2}


def table_of(split: str) -> pd.DataFrame:
    rng = np.random.default_rng(len(split))
    questions = [f"{question} ({split} {copy})" for copy in range(N_COPIES[split]) for question in QUESTIONS]
    n = len(questions)
    return pd.DataFrame(
        {
            "question": questions,
            "success_rate": rng.random(n),
            "other": rng.random(n),
            "subject": [f"s{row % 6}" for row in range(n)],
            "weight": rng.integers(1, 4, n),
        }
    )


@pytest.fixture(scope="module")
def stores(tmp_path_factory, tiny_model) -> Path:
    """Stores with one label, and stores with everything (full_train.zarr); not to be changed."""
    folder = tmp_path_factory.mktemp("stores")
    for split in N_COPIES:
        table_of(split).to_parquet(folder / f"{split}.parquet")
        beside = ("--label_column", "other", "--label_column", "weight", "--group_column", "subject")
        for name, more in {split: (), f"full_{split}": beside}.items():
            done = run(
                "extract", "--model", tiny_model("llama"), "--dataset_path", folder / f"{split}.parquet",
                "--output_path", folder / f"{name}.zarr", "--use_chat_template", "--layers", "0-2",
                "--label_column", "success_rate", *more,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
    return folder


def train(folder: Path, output: Path, *options: object, stores: tuple[str, str] = ("train", "test")):
    return run(
        "train", "--train_activations", folder / f"{stores[0]}.zarr",
        "--test_activations", folder / f"{stores[1]}.zarr",
        "--output_dir", output, "--k_fold", "--n_folds", 3, *options,
    )  # fmt: skip


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def shuffled_file(stores: Path, path: Path) -> Path:
    """Rows of both stores, in another order, with columns that neither store has."""
    both = pd.concat([table_of(split) for split in N_COPIES]).sample(frac=1, random_state=0)
    both.drop(columns="success_rate").to_parquet(path, index=False)
    return path


def test_labels_groups_and_weights_of_a_file_are_as_those_of_the_store(stores, tmp_path):
    options = ("--label_column", "other", "--groups", "subject", "--weight_column", "weight")
    done = train(stores, tmp_path / "stored", *options, stores=("full_train", "full_test"))
    assert done.returncode == 0, done.stderr
    labels = shuffled_file(stores, tmp_path / "labels.parquet")
    done = train(stores, tmp_path / "joined", *options, "--labels", labels)
    assert done.returncode == 0, done.stderr
    for name in ("performance.json", "best_probe_predictions.json", "inference.json"):
        assert (tmp_path / "joined" / name).read_bytes() == (tmp_path / "stored" / name).read_bytes()
    used = read(tmp_path / "joined/run.json")["request"]["train"]["labels"]
    assert used["columns"] == ["other", "weight", "subject"]
    assert used["joined_by"] == "question"
    assert used["paths"] == [str(labels)]
    assert read(tmp_path / "stored/run.json")["request"]["train"]["labels"] is None


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_file_joins_by_prompt_hash(kind, stores, tmp_path):
    parts = [
        pd.DataFrame({"prompt_hash": ActivationStore.open(stores / f"{split}.zarr").coordinate("prompt_hash")}).assign(
            success_rate=table_of(split)["other"]
        )
        for split in N_COPIES
    ]
    both = pd.concat(parts).iloc[::-1]
    path = tmp_path / f"labels.{kind}"
    both.to_csv(path, index=False) if kind == "csv" else both.to_json(path, orient="records", lines=True)
    done = train(stores, tmp_path / "out", "--labels", path)
    assert done.returncode == 0, done.stderr
    best = read(tmp_path / "out/best_probe_predictions.json")
    np.testing.assert_allclose(best["train_actual"], table_of("train")["other"])
    np.testing.assert_allclose(best["test_actual"], table_of("test")["other"])
    assert read(tmp_path / "out/run.json")["request"]["test"]["labels"]["joined_by"] == "prompt_hash"


def test_a_changed_file_is_noticed_and_an_unused_column_is_not(stores, tmp_path):
    path = shuffled_file(stores, tmp_path / "labels.parquet")
    training = Training(
        stores / "train.zarr", stores / "test.zarr", tmp_path / "out", "other", labels=path, k_fold=True, n_folds=3
    )
    training.run()
    again = {"labels": path, "k_fold": True, "n_folds": 3}
    inputs = (stores / "train.zarr", stores / "test.zarr", tmp_path / "out", "other")
    table = pd.read_parquet(path)
    table.assign(note="unused").to_parquet(path)
    assert Training(*inputs, **again).is_finished()
    table.assign(other=table["other"] + 1).to_parquet(path)
    assert not Training(*inputs, **again).is_finished()


def test_rows_in_the_store_s_order_may_repeat_a_prompt(tiny_model, tmp_path):
    table = table_of("train").head(20)
    table.loc[7, "question"] = table.loc[3, "question"]
    table.to_parquet(tmp_path / "d.parquet")
    done = run(
        "extract", "--model", tiny_model("llama"), "--dataset_path", tmp_path / "d.parquet", "--output_path",
        tmp_path / "s.zarr", "--use_chat_template", "--layers", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    options = {"labels": tmp_path / "d.parquet", "k_fold": True, "n_folds": 3}
    Training(tmp_path / "s.zarr", None, tmp_path / "out", "other", **options).run()
    assert read(tmp_path / "out/best_probe_predictions.json")["train_actual"] == table["other"].tolist()
    # In another order it is not certain which row is meant.
    table.iloc[::-1].to_parquet(tmp_path / "d.parquet")
    with pytest.raises(RequestError, match=r"2 rows \(12, 16\) have a prompt that other rows have, too"):
        Training(tmp_path / "s.zarr", None, tmp_path / "out2", "other", **options).run()


def test_a_file_without_prompts_joins_row_by_row(stores, tmp_path):
    paths = []
    for split in N_COPIES:
        paths.append(tmp_path / f"{split}.csv")
        table_of(split)[["other"]].to_csv(paths[-1], index=False)
    done = train(stores, tmp_path / "out", "--label_column", "other", "--labels", paths[0], "--test_labels", paths[1])
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(
        read(tmp_path / "out/best_probe_predictions.json")["train_actual"], table_of("train")["other"]
    )
    assert read(tmp_path / "out/run.json")["request"]["train"]["labels"]["joined_by"] == "row"
    done = train(stores, tmp_path / "no", "--label_column", "other", "--labels", paths[0])
    assert done.returncode == 2
    assert "it has neither a column 'prompt_hash' nor 'question'" in done.stderr
    assert "--test_labels for the test rows" in done.stderr


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda t: t[t["question"] != "Hi (train 1)"], (), "has no row for 1 rows (14) of"),
        (lambda t: pd.concat([t, t.iloc[:2]]), (), "4 rows (0, 1, 55, 56) have a prompt that other rows have, too"),
        (
            lambda t: pd.concat([t, t.iloc[:2].assign(question=["new", "newer"])]),
            (),
            "2 rows (55, 56) of prompts that are not in",
        ),
        (lambda t: t.assign(other=None), (), "label column 'other'"),
        (lambda t: t, ("--label_column", "nothing"), "has no label 'nothing'; it holds success_rate, question, other"),
        (lambda t: t.rename(columns={"other": "one"}), (), "has no label 'other'"),
        (lambda t: t, ("--question_column", "prompt"), "has no column 'prompt'; it has question, other"),
        (lambda t: t, ("--max_samples", 0), "--max_samples 0 must be at least 1"),
    ],
)
def test_what_does_not_fit_is_one_line_with_rows(change, options, message, stores, tmp_path):
    path = shuffled_file(stores, tmp_path / "labels.parquet")
    change(pd.read_parquet(path)).reset_index(drop=True).to_parquet(path)
    chosen = () if "--label_column" in options else ("--label_column", "other")
    done = train(stores, tmp_path / "out", "--labels", path, *chosen, *options)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_file_of_which_nothing_is_used_is_refused(stores, tmp_path):
    path = shuffled_file(stores, tmp_path / "labels.parquet")
    done = train(stores, tmp_path / "out", "--labels", path)
    assert done.returncode == 2
    assert "nothing of it is used; name one of its columns (question, other, subject, weight)" in done.stderr


@pytest.mark.parametrize(
    ("options", "layers", "positions"),
    [
        (("--layers", "1-2"), [1, 2], [-5, -4, -3, -2, -1]),
        (("--layers", "-1", "--positions", "-4,-1"), [2], [-4, -1]),
        (("--positions", "-3..-1"), [0, 1, 2], [-3, -2, -1]),
    ],
)
def test_some_layers_and_positions(options, layers, positions, stores, tmp_path):
    assert train(stores, tmp_path / "all").returncode == 0
    done = train(stores, tmp_path / "some", *options)
    assert done.returncode == 0, done.stderr
    whole, some = (read(tmp_path / name / "performance.json") for name in ("all", "some"))
    assert (some["layer_indices"], some["positions"]) == (layers, positions)
    rows = [whole["positions"].index(each) for each in positions]
    for split in ("train", "test", "cv"):
        expected = np.array(whole["layer_performance"][split], dtype=float)[np.ix_(rows, layers)]
        np.testing.assert_array_equal(np.array(some["layer_performance"][split], dtype=float), expected)
    tokens = read(tmp_path / "all/run.json")["position_tokens"]
    assert read(tmp_path / "some/run.json")["position_tokens"] == [tokens[row] for row in rows]


@pytest.mark.parametrize("join", ["layers", "mean", None])
def test_probes_of_some_cells_predict_and_transfer(join, stores, tmp_path):
    chosen = () if join is None else ("--join", join)
    done = train(stores, tmp_path / "out", "--layers", "1-2", "--positions", "-4,-2", *chosen)
    assert done.returncode == 0, done.stderr
    moved = run("transfer", tmp_path / "out", stores / "test.zarr", "--output_path", tmp_path / "t.json")
    assert moved.returncode == 0, moved.stderr
    best = read(tmp_path / "out/best_probe_predictions.json")
    (row,) = read(tmp_path / "t.json")["probes"].values()
    assert row[0]["best"] == pytest.approx(best["test_score"])
    scored = tmp_path / "p.parquet"
    done = run("predict", "--probe", tmp_path / "out", "--dataset", stores / "test.parquet", "--output", scored)
    assert done.returncode == 0, done.stderr
    predicted = pd.read_parquet(scored)["probe_prediction"]
    np.testing.assert_allclose(predicted, best["test_predictions"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--layers", "0-9"), "holds the layers 0, 1, 2, not 3, 4, 5, 6, 7, ..."),
        (("--layers", "-4"), "holds the layers 0, 1, 2, not -4"),
        (("--layers", "x"), "'x' is not a layer"),
        (("--positions", "-9"), "holds the positions -5, -4, -3, -2, -1, not -9"),
        (("--positions", "1"), "'1' is not a position; write all, -1, -4,-1 or -4..-1"),
    ],
)
def test_places_that_the_store_lacks(options, message, stores, tmp_path):
    done = train(stores, tmp_path / "out", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_named_column_of_questions_is_what_joins(stores, tmp_path):
    labels = table_of("train").assign(prompt_hash=0).sample(frac=1, random_state=0)
    labels.to_parquet(tmp_path / "l.parquet")
    test = table_of("test")
    test.to_parquet(tmp_path / "t.parquet")
    given = ("--labels", tmp_path / "l.parquet", "--test_labels", tmp_path / "t.parquet", "--label_column", "other")
    assert "joined by 'prompt_hash'" in train(stores, tmp_path / "out", *given).stderr
    done = train(stores, tmp_path / "out", *given, "--question_column", "question")
    assert done.returncode == 0, done.stderr
    expected = table_of("train")["other"].tolist()
    assert read(tmp_path / "out/best_probe_predictions.json")["train_actual"] == expected


@pytest.mark.parametrize("corrected", [False, True])
def test_transfer_says_that_a_store_may_have_an_older_label(stores, tmp_path, caplog, corrected):
    labels = table_of("train")
    if corrected:
        labels["success_rate"] = 1 - labels["success_rate"]
    labels.to_parquet(tmp_path / "l.parquet")
    table_of("test").to_parquet(tmp_path / "t.parquet")
    done = train(stores, tmp_path / "out", "--labels", tmp_path / "l.parquet", "--test_labels", tmp_path / "t.parquet")
    assert done.returncode == 0, done.stderr
    assert run("transfer", tmp_path / "out", stores / "test.zarr").returncode == 0
    assert ("which its store does not hold" in caplog.text) == corrected


def test_a_column_that_names_the_test_rows_is_no_label(stores, tmp_path):
    labels = table_of("train").assign(part=np.where(np.arange(33) % 3, "train", "test"))
    labels.drop(columns=["other", "subject", "weight"]).to_parquet(tmp_path / "d.parquet")
    model = ActivationStore.open(stores / "train.zarr").fingerprint["model"]
    done = run(
        "extract", "--model", model, "--dataset_path", tmp_path / "d.parquet", "--output_path", tmp_path / "s.zarr",
        "--use_chat_template", "--layers", "1", "--label_column", "success_rate", "--label_column", "part",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = run(
        "train", "--train_activations", tmp_path / "s.zarr", "--output_dir", tmp_path / "out", "--k_fold", "--n_folds",
        3, "--test_rows", "part=test",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "out/run.json")["request"]["labels"] == ["success_rate"]
