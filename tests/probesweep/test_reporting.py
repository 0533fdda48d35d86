"""The report finds the prompts of the stores that were trained on."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from gpu_probes import ProbeError
from gpu_probes.report import SavedResults
from gpu_probes.report.figures import Figure, predictions
from probesweep.reporting import report_on
from tests.helpers.commands import run


@pytest.fixture
def results(trained, tmp_path) -> Path:
    return shutil.copytree(trained / "results", tmp_path / "results")


@pytest.mark.slow
def test_prompts_of_the_stores_are_shown(results, caplog):
    page = report_on(results)
    assert page == results / "report.html"
    assert all(f"({split} " in page.read_text() for split in ("train", "test"))
    assert not caplog.messages


@pytest.mark.slow
@pytest.mark.parametrize("key", ["path", "content"])
def test_prompts_of_other_stores_are_not(results, key, caplog):
    run_json = json.loads((results / "run.json").read_text())
    run_json["request"]["test"][key] = "another"
    (results / "run.json").write_text(json.dumps(run_json))
    text = report_on(results).read_text()
    assert "(test " not in text
    assert "(train " in text
    assert "does not show these prompts" in caplog.text


@pytest.mark.slow
def test_rows_that_were_left_out_of_the_test_leave_the_others_with_their_prompts(tmp_path, tiny_model):
    questions = [f"question number {row}" for row in range(40)]
    labels = [row / 40 for row in range(40)]
    for split, rows in {"train": slice(0, 30), "test": slice(25, 40)}.items():
        frame = pd.DataFrame({"question": questions[rows], "success_rate": labels[rows]})
        frame.to_parquet(tmp_path / f"{split}.parquet")
        done = run(
            "extract", "--model", tiny_model("llama"), "--dataset_path", tmp_path / f"{split}.parquet", "--output_path",
            tmp_path / f"{split}.zarr", "--use_chat_template", "--layers", "1",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    done = run(
        "train", "--train_activations", tmp_path / "train.zarr", "--test_activations", tmp_path / "test.zarr",
        "--output_dir", tmp_path / "out", "--k_fold", "--drop_overlap",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = run("report", tmp_path / "out", "--figures", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"reports": [str(tmp_path / "out/report.html")]}
    assert {path.suffix for path in (tmp_path / "out/figures").iterdir()} == {".png", ".svg", ".pdf"}
    shown = (tmp_path / "out/report.html").read_text().split("<h3>Test rows")[1].split("<h3>")[0]
    rows = re.findall(r"<td>(\d+)</td>.*?question number (\d+)<", shown, flags=re.DOTALL)
    # Row numbers are those of the store; the first five of it are among the training prompts.
    assert {int(row) + 25 == int(number) and int(row) >= 5 for row, number in rows} == {True}
    drawn = predictions(SavedResults.load(tmp_path / "out"))
    assert isinstance(drawn, Figure)
    assert set(drawn.table.loc[drawn.table["series"] == "test rows", "row number"]) == set(map(str, range(5, 15)))


@pytest.mark.slow
def test_a_folder_without_results(tmp_path):
    with pytest.raises(ProbeError, match="holds no finished training"):
        report_on(tmp_path)
