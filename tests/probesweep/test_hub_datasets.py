"""Commands on datasets of a hub on this machine: what a user types, sees, and may trust."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from activation_store import ActivationStore
from probesweep.labelling.output import read_about
from probesweep.labels_file import LabelsFile
from tests.helpers.commands import run
from tests.helpers.hub import Hub, parquet
from tests.helpers.models import QUESTIONS

pytestmark = pytest.mark.slow

CARD = b"""\
---
configs:
- config_name: main
  data_files:
  - split: train
    path: train.parquet
  - split: test
    path: test.parquet
---
"""


def rows(split: str, shift: float = 0) -> pd.DataFrame:
    questions = [f"{question} ({split} {copy})" for copy in range(3) for question in QUESTIONS]
    scores = [(row * 0.37 + shift) % 1 for row in range(len(questions))]
    return pd.DataFrame({"question": questions, "success_rate": scores, "id": range(len(questions))})


def publish(hub: Hub, message: str = "", **splits: pd.DataFrame) -> str:
    """The dataset me/sums with splits train and test."""
    tables = {"train": rows("train"), "test": rows("test"), **splits}
    files = {f"{split}.parquet": parquet(table) for split, table in tables.items()}
    return hub.publish("me/sums", {"README.md": CARD, **files}, message=message)


def extract(model: Path, dataset: object, store: Path, *more: object):
    return run(
        "extract", "--model", model, "--dataset_path", dataset, "--output_path", store, "--use_chat_template",
        "--layers", "0,1", "--shard_samples", 10, *more,
    )  # fmt: skip


@pytest.mark.parametrize("address", ["hf://datasets/me/sums{at}/train.parquet", "me/sums{at}:main:train"])
def test_a_store_says_its_revision_and_takes_no_other(address, datasets_hub, tiny_model, tmp_path):
    model, store, where = tiny_model("llama"), tmp_path / "train.zarr", address.format(at="")
    old = publish(datasets_hub)
    done = extract(model, where, store)
    assert done.returncode == 0, done.stderr
    opened = ActivationStore.open(store)
    assert opened.fingerprint["dataset_revisions"] == [f"me/sums@{old}"]
    assert opened.attrs["provenance"]["dataset_path"] == address.format(at=f"@{old}")
    assert opened.questions == rows("train")["question"].tolist()
    shown = run("inspect", store).stdout
    assert f'dataset_revisions        ["me/sums@{old}"]' in shown
    assert f"dataset_path             {address.format(at=f'@{old}')}" in shown
    assert json.loads(run("inspect", store, "--json").stdout)["fingerprint"]["dataset_revisions"] == [f"me/sums@{old}"]

    # As after a kill: what is missing must not come from other rows, nor from rows of which that is not known.
    for record in ("finished", "3"):
        (store / "activations/journal" / record).unlink()
    for message, changed in (("labels", {"train": rows("train", 0.1)}), ("the same rows", {})):
        new = publish(datasets_hub, message, **changed)
        done = extract(model, where, store)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1, done.stderr
        assert f"dataset_revisions: ['me/sums@{old}'] in the store, ['me/sums@{new}'] now" in done.stderr
        assert "or name the revision in the store after an @" in done.stderr
        assert ActivationStore.open(store).n_committed < len(opened)
    done = extract(model, address.format(at=f"@{old}"), store)
    assert done.returncode == 0, done.stderr
    assert ActivationStore.open(store).verify() == []
    assert ActivationStore.open(store).n_committed == len(opened)


def test_bad_addresses_are_refused_before_the_model(datasets_hub, tmp_path):
    publish(datasets_hub)
    datasets_hub.publish("me/broken", {"train.parquet": b"PAR1 and no more"})
    for address, said in (
        ("hf://datasets/me/sums/dev.parquet", "me/sums has no file 'dev.parquet'; it has test.parquet, train.parquet"),
        ("hf://datasets/me/none/dev.parquet", "the hub has no visible dataset me/none"),
        ("hf://datasets/me/sums", "write hf://datasets/ORG/NAME/FILE"),
        ("me/sums:other:train", "me/sums has no configuration 'other'; it has main"),
        ("me/broken:default:train", "me/broken:default:train: datasets cannot read it: "),
    ):
        done = extract(tmp_path / "no_model", address, tmp_path / "x.zarr")
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_predict_scores_rows_of_the_hub(datasets_hub, trained, tmp_path):
    table = rows("new")
    publish(datasets_hub, test=table)
    table.to_parquet(tmp_path / "new.parquet")
    written = {}
    for name, where in {
        "file": "hf://datasets/me/sums/test.parquet",
        "split": "me/sums:main:test",
        "local": tmp_path / "new.parquet",
    }.items():
        output = tmp_path / f"{name}.jsonl"
        done = run("predict", "--probe", trained / "results", "--dataset", where, "--output", output)
        assert done.returncode == 0, done.stderr
        written[name] = output.read_bytes()
    assert written["file"] == written["local"] == written["split"]
    assert [json.loads(line)["id"] for line in written["file"].splitlines()] == table["id"].tolist()


def test_label_takes_questions_of_the_hub(datasets_hub, tiny_model, tmp_path):
    old, output = publish(datasets_hub, train=rows("train").assign(answer="7")[:6]), tmp_path / "rates.parquet"
    done = run(
        "label", "--model", tiny_model("llama"), "--dataset_path", "me/sums:main:train", "--output_path", output,
        "--verifier", "contains", "--n_samples", 2, "--max_new_tokens", 4,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert pd.read_parquet(output)["id"].tolist() == list(range(6))
    assert read_about(output)["fingerprint"]["dataset_revisions"] == [f"me/sums@{old}"]


def test_labels_are_joined_from_the_hub(datasets_hub, tiny_model, tmp_path):
    old = publish(datasets_hub)
    assert extract(tiny_model("llama"), "me/sums:main:train", tmp_path / "train.zarr").returncode == 0
    publish(datasets_hub, "better", train=rows("train", 0.3).sample(frac=1, random_state=0))
    done = run(
        "train", "--train_activations", tmp_path / "train.zarr", "--output_dir", tmp_path / "out", "--labels",
        f"me/sums@{old}:main:train", "--k_fold", "--no_nested_cv",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    request = json.loads((tmp_path / "out/run.json").read_text())["request"]
    assert request["train"]["labels"]["paths"] == [f"me/sums@{old}:main:train"]
    store = ActivationStore.open(tmp_path / "train.zarr")
    read = LabelsFile.read("me/sums:main:train", question_column=None, max_samples=None, argument="labels")
    joined = read.join(store)[0].labels("success_rate")
    assert joined.values.tolist() == rows("train", 0.3)["success_rate"].tolist()


EXPERIMENT = """\
output_dir = "out"
[model]
model = "{model}"
[data]
train_dataset = ["me/sums:main:train", "more.parquet"]
test_dataset = "hf://datasets/me/sums/test.parquet"
use_chat_template = true
layers = [0, 1]
[probe]
alphas = [1, 10]
[statistics]
k_fold = true
n_folds = 3
nested_cv = false
"""


def test_an_experiment_reads_the_hub_and_reruns_what_a_commit_touches(datasets_hub, tiny_model, tmp_path):
    rows("more").to_parquet(tmp_path / "more.parquet")
    old, path = publish(datasets_hub), tmp_path / "experiment.toml"
    path.write_text(EXPERIMENT.format(model=tiny_model("llama")))
    planned = run("run", path, "--dry_run")
    assert planned.returncode == 0, planned.stderr
    assert not (tmp_path / "out").exists()
    done = run("run", path)
    assert done.returncode == 0, done.stderr
    assert f"extract train: me/sums@{old}:main:train, {tmp_path / 'more.parquet'} -> " in done.stderr
    stored = ActivationStore.open(tmp_path / "out/train.zarr")
    assert len(stored) == 66
    assert stored.fingerprint["dataset_revisions"] == [f"me/sums@{old}"]
    request = json.loads((tmp_path / "out/probes/run.json").read_text())["request"]
    assert request["test"]["labels"]["paths"] == [f"hf://datasets/me/sums@{old}/test.parquet"]

    again = run("run", path)
    assert "extract train: already done\nextract test: already done\ntrain: already done" in again.stderr

    new = publish(datasets_hub, "labels", train=rows("train", 0.2))
    changed = run("run", path)
    assert changed.returncode == 0, changed.stderr
    assert "extract train: already done\nextract test: already done\ntrain: /" in changed.stderr
    request = json.loads((tmp_path / "out/probes/run.json").read_text())["request"]
    assert request["train"]["labels"]["paths"][0] == f"me/sums@{new}:main:train"

    publish(datasets_hub, "prompts", train=rows("other"))
    changed = run("run", path)
    assert changed.returncode == 0, changed.stderr
    assert (tmp_path / "out/train.1.zarr").is_dir()
    assert "extract test: already done" in changed.stderr

    path.write_text(path.read_text().replace("me/sums:main:train", "me/sums:main:dev"))
    wrong = run("run", path)
    assert wrong.returncode == 2
    assert f"it has train, test (train_dataset in line 5 of {path})" in wrong.stderr
    path.write_text(path.read_text().replace("me/sums:main:dev", "me/none:main:dev"))
    wrong = run("run", path, "--dry_run")
    assert f"(train_dataset in line 5 of {path})" in wrong.stderr
    assert wrong.stderr.count("\n") == 1, wrong.stderr


def test_the_clients_find_another_hub_by_its_variable(hub, tmp_path):
    publish(hub)
    variables = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    }
    code = "import sys; from activation_store.questions.dataset import Columns, Wanted\n"
    code += "for where in sys.argv[1:]: print(len(Columns.read(where, Wanted(['question']))))"
    addresses = ("me/sums:main:train", "hf://datasets/me/sums/train.parquet")
    done = subprocess.run([sys.executable, "-c", code, *addresses], capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "33\n33\n"
