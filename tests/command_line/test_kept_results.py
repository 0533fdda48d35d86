"""Results of another request are kept; several seeds get a folder each and a comparison."""

import json
import shutil
import statistics
from pathlib import Path

import pytest

from gpu_probes.results import kept
from gpu_probes.results.folder import Run
from gpu_probes.results.transfer import DEPTH, find_trainings
from probesweep import Training
from tests.helpers.commands import run
from tests.helpers.ray import write_stores
from tests.helpers.result_folders import write_results
from tests.helpers.stores import tree

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("stores")
    write_stores(path)
    return path


def train(folder: Path, output_dir: Path, *options: object, labels: tuple[str, ...] = ("success_rate",)):
    named = [word for label in labels for word in ("--label_column", label)]
    return run(
        "train", "--train_activations", folder / "train.zarr", "--test_activations", folder / "test.zarr",
        "--output_dir", output_dir, "--k_fold", "--n_folds", 3, *named, *options,
    )  # fmt: skip


def test_results_of_another_request_are_kept_beside_the_new_ones(folder, tmp_path, caplog):
    first = train(folder, tmp_path / "out")
    assert first.returncode == 0, first.stderr
    assert run("report", tmp_path / "out").returncode == 0
    before = tree(tmp_path / "out")
    second = train(folder, tmp_path / "out", "--seed", 7, "--alpha", 10)
    assert second.returncode == 0, second.stderr
    assert f"{tmp_path}/out held the results of another request (alpha, seed): kept as out.1" in caplog.text
    assert tree(tmp_path / "out.1") == before
    assert Run.load(tmp_path / "out").request.options["seed"] == 7
    assert run("report", tmp_path / "out.1").returncode == 0
    # The same request again has nothing to keep.
    caplog.clear()
    assert train(folder, tmp_path / "out", "--seed", 7, "--alpha", 10).returncode == 0
    assert "kept" not in caplog.text
    assert train(folder, tmp_path / "out", "--seed", 8).returncode == 0
    assert "kept as out.2" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.1", "out.2"]


def test_a_file_that_is_replaced_is_named(folder, tmp_path):
    assert train(folder, tmp_path / "out").returncode == 0
    outputs = {
        tmp_path / "scores.json": ("transfer", tmp_path / "out", folder / "test.zarr", "--output_path"),
        tmp_path / "test.pt": ("export", folder / "test.zarr"),
    }
    for output, command in outputs.items():
        first, second, quiet = run(*command, output), run(*command, output), run("--quiet", *command, output)
        assert (first.returncode, second.returncode) == (0, 0)
        assert "replaced" not in first.stderr + quiet.stderr
        assert f"replaced {output}\n" in second.stderr


def test_all_labels_of_a_request_are_kept_together(folder, tmp_path):
    labels = ("success_rate", "right")
    assert train(folder, tmp_path / "out", labels=labels).returncode == 0
    assert train(folder, tmp_path / "out", "--seed", 7, labels=labels).returncode == 0
    assert sorted(path.name for path in (tmp_path / "out.1").iterdir()) == sorted(labels)
    # A label of its own has another folder, and replaces nothing.
    assert train(folder, tmp_path / "out", "--seed", 8).returncode == 0
    assert not (tmp_path / "out.2").exists()


def test_a_kill_between_keeping_and_replacing_keeps_them_once(folder, tmp_path, monkeypatch):
    given = {"train_activations": folder / "train.zarr", "test_activations": folder / "test.zarr"}
    given |= {"output_dir": tmp_path / "out", "label_column": "success_rate", "k_fold": True, "n_folds": 3}
    Training(**given).run()
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Training(**given, seed=7).run()
    assert Run.load(tmp_path / "out").request.options["seed"] == 42
    Training(**given, seed=7).run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.1"]
    assert Run.load(tmp_path / "out.1").request.options["seed"] == 42


def test_a_copy_that_fails_leaves_no_half_and_replaces_nothing(folder, tmp_path, monkeypatch):
    assert train(folder, tmp_path / "out").returncode == 0
    before = tree(tmp_path / "out")

    def fail(source: Path, target: Path) -> None:
        shutil.copyfile(source / "run.json", target)
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(kept, "_copy_results", fail)
    done = train(folder, tmp_path / "out", "--seed", 7)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert tree(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_seeds_get_a_folder_each_and_their_scores_a_mean_and_sd(folder, tmp_path):
    done = train(folder, tmp_path / "out", "--seeds", "1,2,3", labels=("success_rate", "right"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/seeds.json").read_text())
    assert found["seeds"] == [1, 2, 3]
    for label in ("success_rate", "right"):
        assert train(folder, tmp_path / f"alone {label}", "--seed", 2, labels=(label,)).returncode == 0
        scores = []
        for seed in (1, 2, 3):
            folder_of_seed = tmp_path / f"out/seed_{seed}/{label}"
            assert Run.load(folder_of_seed).request.options["seed"] == seed
            scores.append(json.loads((folder_of_seed / "inference.json").read_text())["nested_cv"]["score"])
        assert scores[1] == json.loads((tmp_path / f"alone {label}/inference.json").read_text())["nested_cv"]["score"]
        nested = found["labels"][label]["nested_cv_score"]
        assert nested["values"] == scores
        assert nested["mean"] == pytest.approx(statistics.mean(scores), rel=1e-12)
        assert nested["sd"] == pytest.approx(statistics.stdev(scores), rel=1e-12)
        assert nested["reason"] is None
        assert f"{statistics.mean(scores):.3f}" in done.stdout
    assert "success_rate: spearman with seeds 1, 2, 3" in done.stdout
    before = tree(tmp_path / "out")
    assert train(folder, tmp_path / "out", "--seeds", "1,2,3", labels=("success_rate", "right")).stdout == done.stdout
    assert tree(tmp_path / "out") == before


def test_one_seed_has_no_sd_and_a_missing_score_no_mean(folder, tmp_path):
    done = train(folder, tmp_path / "out", "--seeds", "5", "--no_nested_cv")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/seeds.json").read_text())["labels"]["success_rate"]
    assert found["cv_score"]["sd"] is None
    assert found["cv_score"]["reason"] == "no SD: there is only one seed"
    assert found["nested_cv_score"]["mean"] is None
    assert found["nested_cv_score"]["reason"] == "no mean: seed 5 has no such score"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seeds", "1,1"), "--seeds 1,1 has 1 twice; give each once"),
        (("--seeds", "1,x"), "--seeds 1,x is unknown; write whole numbers with commas between, such as 1,2,3"),
        (("--seeds", "1,-2"), "--seed -2"),
        (("--seeds", "1,2", "--seed", 3), "--seed 3 and --seeds are both given; leave out one of them"),
    ],
    ids=str,
)
def test_seeds_that_are_none(folder, tmp_path, options, message):
    done = train(folder, tmp_path / "out", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {message}"), done.stderr
    assert not (tmp_path / "out").exists()


def test_results_that_would_hide_others_below_them_are_moved(folder, tmp_path, caplog):
    assert train(folder, tmp_path / "out").returncode == 0
    done = train(folder, tmp_path / "out", "--seeds", "1,2", labels=("success_rate", "right"))
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path}/out held the results of another request: moved to out.1" in caplog.text
    assert (
        train(folder, tmp_path / "out", "--seeds", "1,2", "--alpha", 10, labels=("success_rate", "right")).returncode
        == 0
    )
    found = {one.folder.relative_to(tmp_path / "out") for one in find_trainings(tmp_path / "out", depth=DEPTH)}
    assert found == {Path(f"seed_{seed}", label) for seed in (1, 2) for label in ("success_rate", "right")}
    assert (tmp_path / "out/seed_1.1/right/run.json").is_file()
    rows = json.loads(run("table", "--json", tmp_path / "out").stdout)
    assert len(rows) == 4


def test_a_label_whose_name_ends_like_a_copy_is_none(tmp_path):
    for name in ("right", "right.1"):
        write_results(tmp_path / name, label=name)
    shutil.copytree(tmp_path / "right", tmp_path / "right.2")
    assert [one.label for one in find_trainings(tmp_path)] == ["right", "right.1"]
