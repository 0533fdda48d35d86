"""Real trackers, without a network: what they hold afterwards is what the result files say."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from probesweep import RequestError
from probesweep.trackers import check_installed, read_record, track
from tests.test_cli import run


@pytest.fixture
def results(trained, tmp_path) -> Path:
    return shutil.copytree(trained / "results", tmp_path / "results")


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


def expected_series(results: Path) -> dict[str, list[tuple[int, float]]]:
    performance = read(results, "performance.json")
    return {
        f"{split}/position_{position}": [
            (layer, score) for layer, score in zip(performance["layer_indices"], row, strict=True) if score is not None
        ]
        for split, rows in performance["layer_performance"].items()
        for position, row in zip(performance["positions"], rows, strict=True)
    }


def test_record_holds_scores_and_no_prompts(results, tmp_path):
    record = read_record(results, tmp_path / "pictures")
    found = read(results, "inference.json")
    assert record.along_layers == expected_series(results)
    assert record.scores["best/nested_cv_score"] == found["nested_cv"]["score"]
    assert record.scores["best/p"] == found["permutation"]["p_best"]
    assert record.scores["baseline/tfidf/cv_score"] == found["baselines"]["tfidf"]["cv_score"]
    # Layer 0 is constant: undefined scores are left out, not sent as 0.
    assert found["baselines"]["layer_0"]["cv_score"] is None
    assert "baseline/layer_0/cv_score" not in record.scores
    assert record.settings["alphas"] == "[1.0, 10.0]"
    assert record.settings["permutations"] == 20
    assert {"heatmap", "layers"} <= set(record.figures)
    assert "France" not in repr(record)


def test_tensorboard(results):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert track("tensorboard", results) == f"tensorboard --logdir {results / 'tensorboard'}"
    events = EventAccumulator(str(results / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    for name, scores in expected_series(results).items():
        if scores:
            found = [(event.step, event.value) for event in events.Scalars(name)]
            assert found == [(layer, pytest.approx(score, rel=1e-6)) for layer, score in scores]
    assert events.Scalars("best/cv_score")[0].value == pytest.approx(read(results, "probe.json")["scores"]["cv"])
    assert "heatmap" in events.Tags()["images"]
    image = events.Images("heatmap")[0]
    assert image.width > 100
    assert "settings/text_summary" in events.Tags()["tensors"]


def test_mlflow(results, tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'runs'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    where = track("mlflow", results)
    client = MlflowClient(f"file:{tmp_path / 'runs'}")
    held = client.get_run(where.split()[-1])
    assert held.data.params["n_folds"] == "5"
    assert held.data.metrics["best/cv_score"] == pytest.approx(read(results, "probe.json")["scores"]["cv"])
    for name, scores in expected_series(results).items():
        found = [(metric.step, metric.value) for metric in client.get_metric_history(held.info.run_id, name)]
        assert sorted(found) == [(layer, pytest.approx(score)) for layer, score in scores]
    figures = [file.path for file in client.list_artifacts(held.info.run_id, "figures")]
    assert "figures/heatmap.png" in figures


def test_wandb(results, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert track("wandb", results)
    (run_folder,) = (results / "wandb").glob("offline-run-*")
    pictures = {path.name.split("_")[0] for path in run_folder.glob("files/media/images/*.png")}
    assert {"heatmap", "layers"} <= pictures
    (log,) = run_folder.glob("*.wandb")
    content = log.read_bytes()
    for name in ("train/position_-1", "best/nested_cv_score", "permutations"):
        assert name.encode() in content
    assert b"France" not in content


def test_results_are_sent_once(results, tmp_path):
    assert track("tensorboard", results) is not None
    assert track("tensorboard", results) is None
    run_json = results / "run.json"
    run_json.write_text(run_json.read_text() + "\n")
    assert track("tensorboard", results) is not None


def test_the_command_sends(trained, tmp_path):
    command = [
        "train", "--train_activations", trained / "train.zarr", "--test_activations", trained / "test.zarr",
        "--output_dir", tmp_path / "out", "--k_fold", "--track", "tensorboard",
    ]  # fmt: skip
    assert "tensorboard --logdir" in run(*command).stderr
    again = run(*command)
    assert (again.returncode, again.stderr) == (0, "")


def test_a_tracker_that_fails_or_is_missing_is_one_line(results, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nothing://here")
    with pytest.raises(
        RequestError, match=r"mlflow did not take the results, which are whole in .*run the same command"
    ):
        track("mlflow", results)
    assert not (results / "tracked.json").exists()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RequestError, match=r'pip install "probesweep\[wandb\]"'):
        check_installed("wandb")
