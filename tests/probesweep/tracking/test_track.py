"""Real trackers, without a network: what they hold afterwards is what the result files say."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gpu_probes import ProbeError
from probesweep import RequestError
from probesweep.tracking import senders
from probesweep.tracking.record import Record, read_record
from probesweep.tracking.track import check_installed, track
from tests.helpers.commands import run
from tests.helpers.wandb_file import read_records

pytestmark = pytest.mark.slow

N_PIXELS = 40


@pytest.fixture
def results(trained, tmp_path) -> Path:
    return shutil.copytree(trained / "results", tmp_path / "results")


@pytest.fixture
def quick_pictures(monkeypatch):
    """Drawing takes seconds, and is tested with the report."""

    def draw(folder, output, *, figures):
        output.write_text("<p>page</p>")
        Image.fromarray(np.zeros((N_PIXELS, N_PIXELS, 3), dtype=np.uint8)).save(figures / "heatmap.png")
        return output

    monkeypatch.setattr("probesweep.tracking.record.write_report", draw)


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


def expected_scores(results: Path) -> dict[tuple[str, int], float]:
    """(name, layer) -> score, of all that are defined."""
    performance = read(results, "performance.json")
    scores = {
        (f"{split}/position_{position}", layer): score
        for split, rows in performance["layer_performance"].items()
        for position, row in zip(performance["positions"], rows, strict=True)
        for layer, score in zip(performance["layer_indices"], row, strict=True)
        if score is not None
    }
    assert 0 < len(scores) < 3 * len(performance["positions"]) * len(performance["layer_indices"])
    return scores


def test_record_holds_scores_and_files_but_no_prompts_and_nothing_undefined(results, tmp_path):
    record = read_record(results, tmp_path / "pictures")
    found = read(results, "inference.json")
    by_name = {(name, layer): score for layer, row in record.by_layer.items() for name, score in row.items()}
    assert by_name == expected_scores(results)
    assert record.scores["best/nested_cv_score"] == found["nested_cv"]["score"]
    assert record.scores["best/optimism"] == pytest.approx(found["nested_cv"]["optimism"])
    assert record.scores["best/nested_cv_score_low"] == found["intervals"]["nested_cv_score"]["low"]
    assert record.scores["best/test_score_high"] == found["intervals"]["test_score"]["high"]
    assert record.scores["best/p"] == found["permutation"]["p_best"]
    assert record.scores["baseline/tfidf/cv_score"] == found["baselines"]["tfidf"]["cv_score"]
    # Layer 0 is constant: undefined scores are left out, not sent as 0.
    assert found["baselines"]["layer_0"]["cv_score"] is None
    assert "baseline/layer_0/cv_score" not in record.scores
    asked = read(results, "run.json")
    assert record.settings["alphas"] == "[1.0, 10.0]"
    assert record.settings["permutations"] == 20
    assert record.settings["weights"] == asked["weights"]
    assert record.settings["train_content"] == asked["request"]["train"]["content"]
    assert "groups" not in record.settings
    assert {"heatmap", "layers"} <= set(record.figures)
    assert {path.name for path in record.files} == {*asked["files"], "run.json", "report.html"}
    assert "France" not in repr(record)
    assert all(b"France" not in path.read_bytes() for path in record.files)


@pytest.mark.usefixtures("quick_pictures")
def test_without_a_best_probe_its_scores_are_left_out(trained, tmp_path):
    done = run(
        "train", "--train_activations", trained / "train.zarr", "--test_activations", trained / "test.zarr",
        "--output_dir", tmp_path / "out", "--join", "layers",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = read_record(tmp_path / "out", tmp_path)
    assert not [name for name in record.scores if name.startswith("best")]
    # Joined layers have a name in place of a number.
    assert list(record.by_layer) == [0]
    assert all(name.startswith(("train/", "test/")) for name in record.by_layer[0])


@pytest.mark.usefixtures("quick_pictures")
def test_tensorboard(results):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (results / "tensorboard").mkdir()
    (results / "tensorboard/events.out.tfevents.1.earlier").write_bytes(b"of an earlier training")
    (results / "tensorboard/mine.txt").write_text("kept")
    assert track("tensorboard", results) == f"tensorboard --logdir {results / 'tensorboard'}"
    assert len(list((results / "tensorboard").iterdir())) == 2
    events = EventAccumulator(str(results / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    found = {
        (name, event.step): event.value
        for name in events.Tags()["scalars"]
        if not name.startswith(("best/", "baseline/"))
        for event in events.Scalars(name)
    }
    assert found == {key: pytest.approx(score, rel=1e-6) for key, score in expected_scores(results).items()}
    assert events.Scalars("best/cv_score")[0].value == pytest.approx(read(results, "probe.json")["scores"]["cv"])
    assert events.Images("heatmap")[0].width == N_PIXELS
    (text,) = events.Tensors("settings/text_summary")
    assert b"| permutations | 20 |" in text.tensor_proto.string_val[0]


@pytest.fixture
def mlflow_folder(tmp_path, monkeypatch) -> str:
    """Without a server, and with no more than mlflow-skinny, MLflow keeps runs in a folder only."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'runs'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return f"file:{tmp_path / 'runs'}"


@pytest.mark.usefixtures("quick_pictures")
def test_mlflow(results, mlflow_folder):
    from mlflow.tracking import MlflowClient

    where = track("mlflow", results)
    client = MlflowClient(mlflow_folder)
    held = client.get_run(where.split()[-1])
    assert held.info.status == "FINISHED"
    assert client.get_experiment(held.info.experiment_id).name == "probesweep"
    assert held.data.params["n_folds"] == "5"
    assert held.data.metrics["best/cv_score"] == pytest.approx(read(results, "probe.json")["scores"]["cv"])
    expected = expected_scores(results)
    found = {
        (name, metric.step): metric.value
        for name in {name for name, _ in expected}
        for metric in client.get_metric_history(held.info.run_id, name)
    }
    assert found == {key: pytest.approx(score) for key, score in expected.items()}
    artifacts = [file.path for file in client.list_artifacts(held.info.run_id)]
    assert {"run.json", "inference.json", "probes.safetensors", "report.html", "figures"} <= set(artifacts)
    assert [file.path for file in client.list_artifacts(held.info.run_id, "figures")] == ["figures/heatmap.png"]


@pytest.mark.usefixtures("quick_pictures")
def test_mlflow_takes_the_experiment_from_the_environment(results, mlflow_folder, monkeypatch):
    import mlflow
    from mlflow.tracking import MlflowClient

    # MLflow remembers, for the process, the experiment that was set last.
    monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    run_id = track("mlflow", results).split()[-1]
    client = MlflowClient(mlflow_folder)
    assert client.get_experiment(client.get_run(run_id).info.experiment_id).name == "mine"


@pytest.fixture
def wandb_offline(tmp_path, monkeypatch) -> Path:
    """Nothing leaves the machine, nothing is left in the home folder."""
    import wandb

    wandb.teardown()  # wandb reads the environment once in a process
    for name in ("DIR", "CACHE_DIR", "DATA_DIR", "CONFIG_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / "wandb"))
    (tmp_path / "wandb").mkdir()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield tmp_path / "wandb/wandb"
    wandb.teardown()


def values(items) -> dict[str, object]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.mark.usefixtures("quick_pictures")
def test_wandb(results, wandb_offline, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert track("wandb", results)
    assert not (results / "wandb").exists()
    (log,) = wandb_offline.glob("offline-run-*/*.wandb")
    records = list(read_records(log))
    (begun,) = [record.run for record in records if record.HasField("run")]
    assert begun.project == "mine"
    assert begun.display_name == "results success_rate"
    config = values(begun.config.update)
    assert (config["permutations"], config["label"]) == (20, "success_rate")
    rows = [(record.history.step.num, values(record.history.item)) for record in records if record.HasField("history")]
    scores = {(name, step): score for step, row in rows for name, score in row.items() if "position" in name}
    assert scores == expected_scores(results)
    assert all(row["layer"] == step for step, row in rows)
    summary = {}
    for record in records:
        summary |= values(record.summary.update)
    assert summary["best/cv_score"] == pytest.approx(read(results, "probe.json")["scores"]["cv"])
    assert not [name for name in summary if "position_" in name]
    (artifact,) = [record.artifact for record in records if record.HasField("artifact")]
    assert {entry.path for entry in artifact.manifest.contents} >= {"run.json", "probes.safetensors", "report.html"}
    (picture,) = log.parent.glob("files/media/images/figures/*.png")
    assert picture.name.startswith("heatmap")
    assert b"France" not in log.read_bytes()


@pytest.mark.usefixtures("quick_pictures", "wandb_offline")
def test_wandb_without_a_key_says_how_to_go_on(results, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(results))
    monkeypatch.setenv("NETRC", str(results / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(RequestError, match="WANDB_MODE=offline"):
        track("wandb", results)


@pytest.fixture
def sent(monkeypatch) -> list[Record]:
    """A tracker that remembers."""
    records: list[Record] = []

    def remember(record: Record) -> str:
        records.append(record)
        return "in memory"

    monkeypatch.setitem(senders.TRACKERS, "tensorboard", remember)
    return records


@pytest.mark.usefixtures("quick_pictures")
def test_results_are_sent_once(results, sent):
    assert track("tensorboard", results) == "in memory"
    assert track("tensorboard", results) is None
    run_json = results / "run.json"
    run_json.write_text(run_json.read_text() + "\n")
    assert track("tensorboard", results) == "in memory"
    assert len(sent) == 2


@pytest.mark.usefixtures("quick_pictures")
def test_the_command_sends(trained, tmp_path, sent):
    shutil.copytree(trained / "results", tmp_path / "results")
    command = [
        "train", "--train_activations", trained / "train.zarr", "--test_activations", trained / "test.zarr",
        "--output_dir", tmp_path / "results", "--k_fold", "--alphas", "1,10", "--permutations", "20", "--track",
        "tensorboard",
    ]  # fmt: skip
    assert "tensorboard: in memory" in run(*command).stderr
    again = run(*command)
    assert (again.returncode, again.stderr) == (0, "")
    assert len(sent) == 1


@pytest.mark.usefixtures("quick_pictures")
def test_a_tracker_that_fails_or_is_missing_is_one_line(results, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nothing://here")
    with pytest.raises(
        RequestError,
        match=r"mlflow did not accept the results, which are complete in .*MLFLOW_TRACKING_URI.*same command",
    ):
        track("mlflow", results)
    assert not (results / "tracked.json").exists()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RequestError, match=r'pip install "probesweep\[wandb\]"'):
        check_installed("wandb")
    with pytest.raises(RequestError, match="no tracker 'excel'; there are wandb, mlflow, tensorboard"):
        track("excel", results)
    with pytest.raises(ProbeError, match="holds no finished training"):
        track("tensorboard", tmp_path)
