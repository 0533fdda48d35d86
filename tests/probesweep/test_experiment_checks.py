"""An experiment is checked before a model runs: what is wrong for a later stage costs seconds, not a night."""

from pathlib import Path

import pytest

from probesweep import Experiment
from tests.probesweep.test_experiment import change, experiment
from tests.test_cli import run

__all__ = ["experiment"]


@pytest.fixture
def no_model(monkeypatch):
    """No weights are loaded."""

    def load(*_args, **_kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("activation_store.capture.HiddenStates.load", load)


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
    (*in_data("label_column = []"), 10, "label_column", "names no column"),
    (*in_data("label_column = ''"), 10, "label_column", "cannot be called ''"),
    (*in_data("label_column = 2024-07-26"), 10, "label_column = 2024-07-26", DATE),
    (*in_data("label_column = ['a', 2024-07-26]"), 10, "label_column = ['a', 2024-07-26]", DATE),
    (*in_data("group_column = ['question']"), 10, "group_column", "cannot be called 'question'"),
    (*in_data("layers = []"), 10, "layers", "names no layer"),
    (*in_data("layers = ''"), 10, "layers", "0-8"),
    (*in_data("layers = [0, 0]"), 10, "layers", "twice"),
    (*in_data("layers = [true]"), 10, "layers = [true]", "whole number"),
    (*in_data("layers = '8-0'"), 10, "layers", "no layer"),
    (*in_data("layers = {first = 1}"), 10, "layers = {first = 1}", "a list such as"),
    (*in_data("eoi_tokens = 0"), 10, "eoi_tokens 0", "at least 1"),
    (*in_data("max_length = -5"), 10, "max_length -5", "at least 1"),
    (*in_data("max_samples = 0"), 10, "max_samples 0", "at least 1"),
    (*in_data(f"max_samples = {2**70}"), 10, "max_samples", "less than"),
    (*in_data("truncate = 1"), 10, "truncate = 1", "true or false"),
    ("[data]", "batch_size = 0\n[data]", 6, "batch_size 0", "at least 1"),
    ("[data]", "shard_samples = -1\n[data]", 6, "shard_samples -1", "at least 1"),
    ("[data]", "dtype = 'float8'\n[data]", 6, "dtype 'float8'", "bfloat16"),
    ("[data]", "device_map = 'all'\n[data]", 6, "device_map 'all'", "balanced"),
    ('train_dataset = "train.parquet"', 'train_dataset = ""', 7, "train_dataset", "name one"),
    ('output_dir = "out"', 'output_dir = ""', 1, "output_dir", "name one"),
    ('output_dir = "out"', 'output_dir = "a\\u0000b"', 1, "output_dir", "name one"),
    ('output_dir = "out"', 'output_dir = "out"\ndevice = "gpu"', 2, "device 'gpu'", "cuda:1"),
    ('output_dir = "out"', 'output_dir = "out"\ndevice = "cuda:²"', 2, "device 'cuda:²'", "cuda:1"),
    (*in_probe("alphas = []"), 13, "alphas is empty", "at least one"),
    (*in_probe("alphas = [1, inf]"), 13, "alpha", "finite"),
    (*in_probe("alphas = [1, 1]"), 13, "alphas", "twice"),
    (*in_probe("alphas = [true]"), 13, "alphas = [true]", "a number"),
    (*in_probe("alphas = '1;2'"), 13, "alphas '1;2'", "write numbers with commas between"),
    (*in_probe("alphas = [[1]]"), 13, "alphas = [[1]]", "a number"),
    (*in_probe("alpha = inf"), 13, "alpha inf", "finite"),
    (*in_probe("alpha = nan"), 13, "alpha nan", "finite"),
    (*in_probe("alpha = -1"), 13, "alpha -1.0", "0 or more"),
    (*in_probe("alpha = true"), 13, "alpha = true", "a number"),
    (*in_probe("budget_gib = nan"), 13, "budget_gib nan", "above 0"),
    (*in_probe("budget_gib = 0"), 13, "budget_gib 0", "above 0"),
    (*in_probe("join = ''"), 13, "join", "LAYER@POSITION"),
    (*in_probe("join = '1@'"), 13, "join", "LAYER@POSITION"),
    (*in_probe("weight_column = ''"), 13, "weight_column", "is empty"),
    (*in_probe("task_type = 'numbers'"), 13, "task_type = 'numbers'", "'regression'"),
    (*in_probe("alphas = [1, 10]\nprobe = 'mass_mean'"), 13, "alphas", "leave out alphas"),
    (*in_statistics("n_folds = 1"), 17, "n_folds 1", "2 or more"),
    (*in_statistics("n_folds = true"), 17, "n_folds = true", "whole number"),
    (*in_statistics("seed = -1"), 17, "seed -1", "0 to 4294967295"),
    (*in_statistics("permutations = -1"), 17, "permutations -1", "0 or more"),
    (*in_statistics("groups = ''"), 17, "groups", "is empty"),
    (*in_statistics("groups = ['topic']"), 17, "groups = ['topic']", "a text in quotes"),
    ("k_fold = true", "k_fold = false", 13, "alphas", "use --k_fold"),
    ("k_fold = true", "k_fold = 1", 16, "k_fold = 1", "true or false"),
]


@pytest.mark.parametrize(("old", "new", "line", "key", "way_out"), VALUES, ids=[new for _, new, *_ in VALUES])
def test_every_value_is_checked_when_the_file_is_read(experiment, no_model, monkeypatch, old, new, line, key, way_out):
    def read(*_args, **_kwargs):
        raise AssertionError("a dataset was read")

    monkeypatch.setattr("activation_store.extract.read_dataset", read)
    change(experiment, old, new)
    refused(experiment, key, way_out, line=line)


@pytest.mark.parametrize("grid", ["'1,10'", "'auto'", "[1, 10]"])
def test_a_grid_may_be_written_as_on_the_command_line(experiment, grid):
    change(experiment, "[1, 10]", grid)
    Experiment.load(experiment)


def test_one_column_of_groups_needs_no_list(experiment):
    change(experiment, "layers = [0, 1]", "group_column = 'topic'")
    assert Experiment.load(experiment).extraction("train").group_column == ["topic"]
