"""An experiment is checked before a model runs: what is wrong for a later stage costs seconds, not a night."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from activation_store import StoreLockedError
from activation_store.extraction import arguments
from probesweep import Experiment
from tests.helpers.commands import run
from tests.probesweep.experiment.test_experiment import change, experiment

__all__ = ["experiment"]


@pytest.fixture
def no_model(monkeypatch):
    """No weights are loaded."""

    def load(*_args, **_kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("activation_store.capture.hidden_states.HiddenStates.load", load)


def refused(path: Path, *names: str, line: int | None) -> str:
    """What `probesweep run` says of a mistake: one line that names where it stands, and nothing is written."""
    before = sorted(path.parent.rglob("*"))
    done = run("run", path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert str(path) in done.stderr
    assert line is None or f"line {line}" in done.stderr, done.stderr
    assert [name for name in names if name not in done.stderr] == [], done.stderr
    assert sorted(path.parent.rglob("*")) == before
    return done.stderr


LONG = "x" * 300
KWARGS = "use_chat_template = true\nchat_template_kwargs = {}"
DATE = 'put the date in quotes: "2024-07-26"'


def in_data(line: str) -> tuple[str, str]:
    return "layers = [0, 1]", line


def in_probe(line: str) -> tuple[str, str]:
    return "alphas = [1, 10]", line


def in_statistics(line: str) -> tuple[str, str]:
    return "n_folds = 3", line


def in_template(table: str) -> tuple[str, str]:
    return "layers = [0, 1]", f"chat_template_kwargs = {table}"


# Line 10 is the last of [data], 13 that of [probe], 17 that of [statistics].
VALUES = [
    (*in_template("{date_string = 2024-07-26}"), 10, "chat_template_kwargs.date_string", DATE),
    (*in_template("{a = {b = [1, 2024-07-26]}}"), 10, "chat_template_kwargs.a.b", DATE),
    (*in_template("{at = 12:30:00}"), 10, "chat_template_kwargs.at", 'put the time in quotes: "12:30:00"'),
    (*in_template("{at = 2024-07-26T10:00:00Z}"), 10, "chat_template_kwargs.at", '"2024-07-26T10:00:00+00:00"'),
    (*in_template("{share = inf}"), 10, "chat_template_kwargs.share", "is inf"),
    (*in_template("{share = [nan]}"), 10, "chat_template_kwargs.share", "is nan"),
    (*in_template("[1]"), 10, "chat_template_kwargs = [1]", "a table such as"),
    (*in_data("[data.chat_template_kwargs]\na = 1\nday = 2024-07-26"), 12, "chat_template_kwargs.day", DATE),
    (*in_data("label_column = []"), 10, "label_column", "label_column = [] is empty"),
    (*in_data("label_column = ''"), 10, "label_column", "cannot be called ''"),
    (*in_data("label_column = 2024-07-26"), 10, "label_column = 2024-07-26", DATE),
    (*in_data("label_column = ['a', 2024-07-26]"), 10, "label_column = ['a', 2024-07-26]", DATE),
    (*in_data("group_column = ['question']"), 10, "group_column", "cannot be called 'question'"),
    (*in_data("layers = []"), 10, "layers", "layers = [] is empty"),
    (*in_data("layers = ''"), 10, "layers", "0-8"),
    (*in_data("layers = [0, 0]"), 10, "layers", "twice"),
    (*in_data("layers = [true]"), 10, "layers = [true]", "whole number"),
    (*in_data("layers = '8-0'"), 10, "layers", "not a layer"),
    (*in_data("layers = {first = 1}"), 10, "layers = {first = 1}", "a list such as"),
    (*in_data("eoi_tokens = 0"), 10, "eoi_tokens = 0", "at least 1"),
    (*in_data("max_length = -5"), 10, "max_length = -5", "at least 1"),
    (*in_data("max_samples = 0"), 10, "max_samples = 0", "at least 1"),
    (*in_data(f"max_samples = {2**70}"), 10, "max_samples", "less than"),
    (*in_data("truncate = 1"), 10, "truncate = 1", "true or false"),
    ("[data]", "batch_size = 0\n[data]", 6, "batch_size = 0", "at least 1"),
    ("[data]", "shard_samples = -1\n[data]", 6, "shard_samples = -1", "at least 1"),
    ("[data]", "dtype = 'float8'\n[data]", 6, "dtype = 'float8'", "bfloat16"),
    ("[data]", "device_map = 'all'\n[data]", 6, "device_map = 'all'", "balanced"),
    ('train_dataset = "train.parquet"', 'train_dataset = ""', 7, "train_dataset", "give another"),
    ('train_dataset = "train.parquet"', f'train_dataset = "{LONG}"', 7, "train_dataset", "255 bytes"),
    ('test_dataset = "test.parquet"', f'test_dataset = "a/{LONG}/b"', 8, "test_dataset", "255 bytes"),
    ('output_dir = "out"', f'output_dir = "{LONG}"', 1, "output_dir", "255 bytes"),
    ('output_dir = "out"', f'output_dir = "{"é" * 200}"', 1, "output_dir", "255 bytes"),
    ('output_dir = "out"', f'output_dir = "{"a/" * 3000}"', 1, "output_dir", "4095"),
    ('output_dir = "out"', 'output_dir = ""', 1, "output_dir", "give another"),
    ('output_dir = "out"', 'output_dir = "a\\u0000b"', 1, "output_dir", "give another"),
    ('output_dir = "out"', 'output_dir = "out"\ndevice = "gpu"', 2, "device = 'gpu'", "cuda:1"),
    ('output_dir = "out"', 'output_dir = "out"\ndevice = "cuda:²"', 2, "device = 'cuda:²'", "cuda:1"),
    (*in_probe("alphas = []"), 13, "alphas = [] is empty", "at least one"),
    (*in_probe("alphas = [1, inf]"), 13, "alpha", "finite"),
    (*in_probe("alphas = [1, 1]"), 13, "alphas", "twice"),
    (*in_probe("alphas = [true]"), 13, "alphas = [true]", "a number"),
    (*in_probe("alphas = '1;2'"), 13, "alphas = '1;2'", "write numbers with commas between"),
    (*in_probe("alphas = [[1]]"), 13, "alphas = [[1]]", "a number"),
    (*in_probe("alpha = inf"), 13, "alpha = inf", "finite"),
    (*in_probe("alpha = nan"), 13, "alpha = nan", "finite"),
    (*in_probe("alpha = -1"), 13, "alpha = -1.0", "0 or more"),
    (*in_probe("alpha = true"), 13, "alpha = true", "a number"),
    (*in_probe("budget_gib = nan"), 13, "budget_gib = nan", "above 0"),
    (*in_probe("budget_gib = 0"), 13, "budget_gib = 0", "above 0"),
    (*in_probe("join = ''"), 13, "join", "LAYER@POSITION"),
    (*in_probe("join = '1@'"), 13, "join", "LAYER@POSITION"),
    (*in_probe("join = '0@-1,0@-1'"), 13, "join", "give each once"),
    (*in_probe("weight_column = ''"), 13, "weight_column", "is empty"),
    (*in_probe("task_type = 'numbers'"), 13, "task_type = 'numbers'", "regression"),
    (*in_probe("alphas = [1, 10]\nprobe = 'mass_mean'"), 13, "alphas", "leave out alphas"),
    (*in_statistics("n_folds = 1"), 17, "n_folds = 1", "2 or more"),
    (*in_statistics("n_folds = true"), 17, "n_folds = true", "whole number"),
    (*in_statistics("seed = -1"), 17, "seed = -1", "0 to 4294967295"),
    (*in_statistics("permutations = -1"), 17, "permutations = -1", "0 or more"),
    (*in_statistics("permutations = 99999999999999999999"), 17, "permutations", "1000000 at most"),
    (*in_statistics("groups = ''"), 17, "groups", "is empty"),
    (*in_statistics("groups = ['topic']"), 17, "groups = ['topic']", "a string in quotes"),
    (*in_statistics("n_folds = 3\n[machines]\nworkers = 0"), 19, "workers = 0", "must be from 1"),
    (*in_statistics("n_folds = 3\n[machines]\nworkers = '2'"), 19, "workers = '2'", "whole number"),
    (*in_statistics("n_folds = 3\n[machines]\nray = 'nowhere'"), 19, "ray = 'nowhere'", "use auto, local"),
    ("k_fold = true", "k_fold = false", 13, "alphas", "use k_fold = true"),
    ("k_fold = true", "k_fold = 1", 16, "k_fold = 1", "true or false"),
]


@pytest.mark.parametrize(("old", "new", "line", "key", "way_out"), VALUES, ids=[new for _, new, *_ in VALUES])
def test_every_value_is_checked_when_the_file_is_read(experiment, no_model, monkeypatch, old, new, line, key, way_out):
    def read(*_args, **_kwargs):
        raise AssertionError("a dataset was read")

    monkeypatch.setattr("activation_store.extraction.extract.read_dataset", read)
    change(experiment, old, new)
    refused(experiment, key, way_out, line=line)


def edited(split: str, change: Callable[[pd.DataFrame], object]) -> Callable[[Path], None]:
    """Change the rows of a split: the table in place, or the one that is returned."""

    def edit(folder: Path) -> None:
        table = pd.read_parquet(folder / f"{split}.parquet")
        changed = change(table)
        (table if changed is None else changed).to_parquet(folder / f"{split}.parquet")

    return edit


def with_labels(*splits: str, labels: Callable[[int], object]) -> Callable[[Path], None]:
    """Give splits other labels."""

    def edit(folder: Path) -> None:
        for split in splits:
            edited(split, lambda table: table.assign(success_rate=labels(len(table))))(folder)

    return edit


def both(first: Callable[[Path], None], second: Callable[[Path], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        first(folder)
        second(folder)

    return edit


def written(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def nothing(_folder: Path) -> None:
    pass


ROWS: dict[str, tuple[Callable[[Path], None], tuple[str, str], int, tuple[str, ...]]] = {
    # Files and columns.
    "no test file": (nothing, ('"test.parquet"', '"tset.parquet"'), 8, ("tset.parquet", "test_dataset")),
    "no train file": (nothing, ('"train.parquet"', '"no.parquet"'), 7, ("no.parquet", "train_dataset")),
    "no dataset": (written("t.txt", "a"), ('"test.parquet"', '"t.txt"'), 8, ("test_dataset", ".csv")),
    "torn": (written("t.parquet", "PAR1a"), ('"test.parquet"', '"t.parquet"'), 8, ("test_dataset", "parquet")),
    "no label in test": (
        edited("test", lambda table: table.drop(columns="success_rate")),
        in_data("label_column = 'success_rate'"),
        10,
        ("label_column", "test.parquet"),
    ),
    "no weights": (nothing, in_probe("weight_column = 'n'"), 13, ("'n'", "weight_column", "train.parquet")),
    "no groups in test": (
        edited("test", lambda table: table.drop(columns="topic")),
        in_statistics("groups = 'topic'"),
        17,
        ("'topic'", "groups", "test.parquet"),
    ),
    "null group": (
        edited("test", lambda table: table.assign(topic=[None, *table["topic"][1:]])),
        in_statistics("groups = 'topic'"),
        17,
        ("groups", "test.parquet", "row 0"),
    ),
    "no rows in test": (edited("test", lambda table: table.iloc[:0]), ("", ""), 8, ("test_dataset", "no rows")),
    "a question is null": (
        edited("test", lambda table: table.assign(question=[None, *table["question"][1:]])),
        ("", ""),
        8,
        ("test_dataset", "row 0"),
    ),
    "a label is infinite": (with_labels("test", labels=lambda n: [np.inf] + [0.0] * (n - 1)), ("", ""), 8, ("row 0",)),
    "a label is text": (with_labels("test", labels=lambda n: ["high"] * n), ("", ""), 8, ("test_dataset", "high")),
    # The model and its prompts.
    "no such model": (nothing, ('model = "', 'model = "no'), 4, ("model", "configuration")),
    "too many tokens": (nothing, in_data(f"eoi_tokens = {2**63 - 1}"), 10, ("eoi_tokens", "the longest row has")),
    "a whole number that no float64 holds": (
        with_labels("test", labels=lambda n: [2**53 + 1] + [0] * (n - 1)),
        ("", ""),
        8,
        ("9007199254740993 in row 0", "subtract an offset", "test_dataset"),
    ),
    "no such layer": (nothing, in_data("layers = [0, 77]"), 10, ("layers", "0 to 3")),
    "one layer twice": (nothing, in_data("layers = [3, -1]"), 10, ("layers", "layer 3 twice")),
    "a test prompt is too long": (
        edited("test", lambda table: table.assign(question=["word " * 500, *table["question"][1:]])),
        ("", ""),
        8,
        ("test_dataset", "row 0", "truncate = true"),
    ),
    "no such cell": (nothing, in_probe("join = '0@-1,3@-1'"), 13, ("join", "3@-1")),
    "no such position": (nothing, in_probe("join = '0@-99'"), 13, ("join", "0@-99")),
    # Labels.
    "all labels equal": (with_labels("train", labels=lambda n: [0.5] * n), ("", ""), 8, ("equal", "success_rate")),
    "one class": (with_labels("train", "test", labels=lambda n: [1] * n), ("", ""), 8, ("equal",)),
    "test labels equal": (with_labels("test", labels=lambda n: [0.5] * n), ("", ""), 8, ("test", "one value")),
    "a class is not in test": (
        both(
            with_labels("train", labels=lambda n: np.arange(n) % 3),
            with_labels("test", labels=lambda n: np.arange(n) % 2),
        ),
        ("", ""),
        8,
        ("test", "lack a class"),
    ),
    "a class only in test": (
        both(
            with_labels("train", labels=lambda n: np.arange(n) % 2),
            with_labels("test", labels=lambda n: np.arange(n) % 3),
        ),
        ("", ""),
        8,
        ("test", "never saw"),
    ),
    "test labels of another kind": (
        with_labels("train", labels=lambda n: np.arange(n) % 2),
        ("", ""),
        8,
        ("test", "never saw"),
    ),
    "numbers as classes": (nothing, in_probe("task_type = 'classification'"), 13, ("task_type", "not classes")),
    "logistic numbers": (nothing, in_probe("probe = 'logistic'"), 13, ("probe = 'logistic'", "regression")),
    "alpha 0 for classes": (
        with_labels("train", "test", labels=lambda n: np.arange(n) % 2),
        in_probe("alpha = 0"),
        13,
        ("alpha 0",),
    ),
    "negative weights": (
        edited("train", lambda table: table.assign(weight=-1)),
        in_probe("weight_column = 'weight'"),
        13,
        ("weight_column", "0 or more"),
    ),
    # Folds and statistics.
    "more folds than rows": (nothing, in_statistics("n_folds = 99"), 17, ("n_folds = 99", "33 samples")),
    "more folds than groups": (
        nothing,
        ("n_folds = 3", "n_folds = 5\ngroups = 'topic'"),
        17,
        ("n_folds = 5", "4 groups"),
    ),
    "more folds than the rarest class has rows": (
        both(
            with_labels("train", labels=lambda n: [1, 1] + [0] * (n - 2)),
            with_labels("test", labels=lambda n: np.arange(n) % 2),
        ),
        ("", ""),
        17,
        ("n_folds", "lacks a class"),
    ),
    "folds of one row": (nothing, in_statistics("n_folds = 33"), 17, ("n_folds", "one label value")),
    "nothing to permute": (
        edited("train", lambda table: table.assign(topic=[f"t{row}" for row in range(len(table))][::-1])),
        in_statistics("n_folds = 33\npermutations = 10\ngroups = 'topic'"),
        17,
        ("n_folds",),
    ),
    "no memory": (nothing, in_probe("budget_gib = 1e-7"), 13, ("budget_gib", "the budget is 107 bytes")),
    "all test rows are training rows": (
        lambda folder: (folder / "test.parquet").write_bytes((folder / "train.parquet").read_bytes()) and None,
        in_statistics("drop_overlap = true"),
        17,
        ("drop_overlap", "nothing is left"),
    ),
    # Places.
    "output_dir is a file": (written("out", "a"), ("", ""), 1, ("output_dir", "cannot write")),
    "output_dir is a dataset": (
        nothing,
        ('output_dir = "out"', 'output_dir = "train.parquet/out"'),
        1,
        ("output_dir",),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ROWS)
def test_the_rows_of_every_stage_are_checked_first(experiment, no_model, kind):
    edit, (old, new), line, names = ROWS[kind]
    edit(experiment.parent)
    change(experiment, old, new)
    refused(experiment, *names, line=line)


def test_a_place_that_holds_something_else_is_found_first(experiment, no_model):
    (experiment.parent / "out/test.zarr").mkdir(parents=True)
    (experiment.parent / "out/test.zarr/notes.txt").write_text("mine")
    assert "is not a store" in refused(experiment, "output_dir", line=1)


def test_another_process_is_not_a_mistake_in_the_file(experiment, no_model, monkeypatch):
    def locked(_extraction):
        raise StoreLockedError("out/train.zarr is being written by process 123")

    monkeypatch.setattr("activation_store.Extraction.plan", locked)
    done = run("run", experiment)
    assert (done.returncode, done.stderr) == (1, "error: out/train.zarr is being written by process 123\n")


def test_permutations_that_change_nothing_are_refused(experiment, no_model):
    table = pd.read_parquet(experiment.parent / "train.parquet")
    # Groups of different sizes, and one label in each: no two groups can change places.
    topics = np.repeat(range(7), range(1, 8))[: len(table)]
    table = table.iloc[: len(topics)].assign(topic=topics.astype(str), success_rate=topics / 7)
    table.to_parquet(experiment.parent / "train.parquet")
    change(experiment, *in_statistics("n_folds = 2\npermutations = 10\ngroups = 'topic'"))
    refused(experiment, "permutations", "no label differs", line=18)


def test_both_stores_together_have_to_fit(experiment, no_model, monkeypatch):
    sizes = {split: Experiment.load(experiment).extraction(split).missing_nbytes() for split in ("train", "test")}

    class Usage:
        free = max(sizes.values())

    monkeypatch.setattr(arguments.shutil, "disk_usage", lambda _path: Usage)
    assert all(size <= Usage.free for size in sizes.values())
    refused(experiment, "GiB free", line=None)


def test_a_store_and_its_pt_have_to_fit_together(experiment, no_model, monkeypatch, tmp_path):
    planned = Experiment.load(experiment).extraction("train")
    size = planned.missing_nbytes()
    assert planned.plan().nbytes <= size

    class Usage:
        free = size

    monkeypatch.setattr(arguments.shutil, "disk_usage", lambda _path: Usage)
    before = sorted(tmp_path.rglob("*"))
    done = run(
        "extract", "--model", planned.model, "--dataset_path", planned.dataset_path, "--output_path",
        tmp_path / "new.pt", "--use_chat_template", "--layers", "0,1",
    )  # fmt: skip
    assert done.returncode == 2
    assert f"{tmp_path}/new.pt needs" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("kind", "module"), [("wandb", "wandb"), ("tensorboard", "PIL.Image")])
def test_a_tracker_that_is_not_installed_is_named_first(experiment, no_model, monkeypatch, kind, module):
    monkeypatch.setitem(sys.modules, module, None)
    experiment.write_text(f"{experiment.read_text()}[report]\ntrack = '{kind}'\n")
    refused(experiment, "track", "pip install", line=19)


@pytest.mark.slow
def test_what_is_extracted_already_is_not_extracted_or_checked_again(experiment, monkeypatch):
    assert run("run", experiment).returncode == 0

    def read(*_args, **_kwargs):
        raise AssertionError("a dataset was read")

    monkeypatch.setattr("activation_store.extraction.extract.read_dataset", read)
    change(experiment, "[1, 10]", "[1, 100]")
    done = run("run", experiment)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_new_test_rows_are_checked_against_the_store_of_the_training_rows(experiment, monkeypatch):
    assert run("run", experiment).returncode == 0
    monkeypatch.setattr("activation_store.capture.hidden_states.HiddenStates.load", None)
    with_labels("test", labels=lambda n: [0.5] * n)(experiment.parent)
    refused(experiment, "one value", line=8)


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        (("success_rate", "label_column = 'success_rate'"), "label_column in line 10"),
        (("weight", "weight_column = 'weight'"), "weight_column in line 14"),
        (("topic", "groups = 'topic'"), "groups in line 19"),
        (("topic", "group_column = ['topic']"), "group_column in line 10"),
    ],
)
def test_a_column_that_is_missing_is_named_by_the_key_that_asks_for_it(experiment, no_model, missing, named):
    column, line = missing
    change(experiment, "layers = [0, 1]", "label_column = 'success_rate'")
    change(experiment, "alphas = [1, 10]", "alphas = [1, 10]\nweight_column = 'weight'")
    edited("train", lambda table: table.drop(columns=column))(experiment.parent)
    if line.startswith("group_column"):
        change(experiment, "label_column = 'success_rate'", line)
    elif line.startswith("groups"):
        change(experiment, "n_folds = 3", f"n_folds = 3\n{line}")
    told = refused(experiment, "no column", f"({named} of {experiment})", line=None)
    assert told.count(" in line ") == 1


@pytest.mark.parametrize("grid", ["'1,10'", "'auto'", "[1, 10]"])
def test_a_grid_may_be_written_as_on_the_command_line(experiment, grid):
    change(experiment, "[1, 10]", grid)
    Experiment.load(experiment)


def test_one_column_of_groups_needs_no_list(experiment):
    change(experiment, "layers = [0, 1]", "group_column = 'topic'")
    assert Experiment.load(experiment).extraction("train").group_column == ["topic"]
