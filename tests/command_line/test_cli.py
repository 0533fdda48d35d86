"""The command line as a user meets it: exit codes, one-line errors, files, numbers."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import constants
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge

from activation_store import ActivationStore
from tests.helpers.commands import PROBESWEEP, run, run_process
from tests.helpers.models import QUESTIONS, save_model, train_tokenizer
from tests.helpers.stores import tree

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stores(tmp_path_factory, tiny_model) -> Path:
    """Folder with train.zarr (44 rows) and test.zarr (22 rows) of the tiny Llama."""
    folder = tmp_path_factory.mktemp("stores")
    generator = np.random.default_rng(0)
    for name, copies in {"train": 4, "test": 2}.items():
        questions = [f"{question} ({name} {copy})" for copy in range(copies) for question in QUESTIONS]
        labels = generator.random(len(questions))
        table = pd.DataFrame({"question": questions, "success_rate": labels, "right": (labels > 0.5).astype(int)})
        table.to_parquet(folder / f"{name}.parquet")
        for label, suffix in {"success_rate": "", "right": "_right"}.items():
            done = (run_process if name == "test" and not suffix else run)(
                "extract", "--model", tiny_model("llama"), "--dataset-path", folder / f"{name}.parquet",
                "--output_path", folder / f"{name}{suffix}.zarr", "--use_chat_template", "--label-column", label,
                "--layers", "0,1,3",
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            if done.args[0] == PROBESWEEP:
                assert done.stderr == ""  # no progress bars and no chatter of libraries where there is no terminal
            assert f"{len(questions)} of {len(questions)} committed" in done.stdout
    return folder


def train(stores: Path, output_dir: Path, *options: object, suffix: str = "") -> subprocess.CompletedProcess[str]:
    return run(
        "train", "--train_activations", stores / f"train{suffix}.zarr", "--test_activations",
        stores / f"test{suffix}.zarr", "--output_dir", output_dir, *options,
    )  # fmt: skip


def performance(output_dir: Path) -> dict:
    return json.loads((output_dir / "performance.json").read_text())


def test_help_names_the_commands_and_imports_nothing_heavy():
    done = run_process("--help")
    assert "extract" in done.stdout
    assert "train" in done.stdout
    # What would make it slow is an import at the top of a command's file; the time itself is the machine's.
    code = "import sys, probesweep.commands.main\n"
    code += "print({'torch', 'transformers', 'zarr', 'pandas', 'sklearn'} & set(sys.modules))"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert imported.stdout.strip() == "set()"


@pytest.mark.parametrize("module", ["probesweep", "cli"])
def test_the_command_is_a_module_too(module):
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, run_process("--version").stdout)


def test_train_writes_what_scikit_learn_computes(stores, tmp_path):
    done = train(stores, tmp_path, "--k_fold", "--alpha", "0.5")
    assert done.returncode == 0, done.stderr
    performance = json.loads((tmp_path / "performance.json").read_text())
    best = json.loads((tmp_path / "best_probe_predictions.json").read_text())
    predictions = json.loads((tmp_path / "all_predictions.json").read_text())
    train_store, test_store = (ActivationStore.open(stores / f"{name}.zarr") for name in ("train", "test"))
    assert performance["layer_indices"] == [0, 1, 3]
    assert performance["metric"] == "spearman"
    for layer_idx, layer in enumerate(train_store.layers):
        for position_idx, position in enumerate(train_store.positions):
            score = performance["layer_performance"]["test"][position_idx][layer_idx]
            if layer == 0:
                assert score is None
                assert performance["layer_performance"]["cv"][position_idx][layer_idx] is None
                assert "identical" in performance["undefined"][f"pos_{position}_layer_{layer_idx}"]
                continue
            features, held_out = (store.cell(layer, position).astype(np.float64) for store in (train_store, test_store))
            ridge = Ridge(alpha=0.5, fit_intercept=False, solver="svd")
            expected = ridge.fit(features, train_store.labels["success_rate"]).predict(held_out)
            found = predictions["predictions"][f"pos_{position}_layer_{layer_idx}"]["test_predictions"]
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
            assert score == pytest.approx(spearmanr(expected, test_store.labels["success_rate"]).statistic)
    cv = np.array(performance["layer_performance"]["cv"], dtype=float)
    assert best["cv_score"] == np.nanmax(cv) == cv[best["best_position_idx"], best["best_layer"]]
    assert best["best_layer_number"] == performance["layer_indices"][best["best_layer"]]
    assert f"{best['cv_score']:.3f}" in done.stdout
    assert f"layer {best['best_layer_number']}, position {best['best_position']}" in done.stdout
    baseline = json.loads((tmp_path / "inference.json").read_text())["baselines"]["prompt_length"]
    n_tokens = [store.coordinate("n_tokens") for store in (train_store, test_store)]
    sign = np.sign(np.corrcoef(n_tokens[0], train_store.labels["success_rate"])[0, 1])
    expected = sign * spearmanr(n_tokens[1], test_store.labels["success_rate"]).statistic
    assert baseline["test_score"] == pytest.approx(expected)
    assert f"{baseline['test_score']:.3f}" in done.stdout


def test_second_run_does_nothing_and_other_options_train_again(stores, tmp_path):
    first = train(stores, tmp_path, "--k-fold", "--alphas", "1,100")
    written = (tmp_path / "performance.json").stat().st_mtime_ns
    again = train(stores, tmp_path, "--k_fold", "--alpha_grid", "1,100")
    assert again.stdout == first.stdout
    assert (tmp_path / "performance.json").stat().st_mtime_ns == written
    # What is lost or was changed is made anew.
    (tmp_path / "cells.parquet").unlink()
    whole = (tmp_path / "inference.json").read_bytes()
    (tmp_path / "inference.json").write_bytes(whole.replace(b"0.1", b"0.9"))
    assert train(stores, tmp_path, "--k_fold", "--alphas", "1,100").stdout == first.stdout
    assert (tmp_path / "cells.parquet").exists()
    assert (tmp_path / "inference.json").read_bytes() == whole
    assert train(stores, tmp_path, "--k_fold", "--alphas", "2,3").returncode == 0
    assert json.loads((tmp_path / "performance.json").read_text())["alpha_grid"] == [2.0, 3.0]


def test_without_folds_no_best_probe_is_chosen(stores, tmp_path):
    train(stores, tmp_path, "--k_fold")
    done = train(stores, tmp_path)
    assert "No best probe is chosen" in done.stdout
    assert not (tmp_path / "best_probe_predictions.json").exists()
    assert json.loads((tmp_path / "performance.json").read_text())["layer_performance"]["cv"] is None


def test_classification(stores, tmp_path):
    done = train(stores, tmp_path, "--k_fold", suffix="_right")
    assert done.returncode == 0, done.stderr
    performance = json.loads((tmp_path / "performance.json").read_text())
    assert (performance["task_type"], performance["metric"]) == ("classification", "roc_auc")


EXTRACT = "extract --model M --output_path o --use_chat_template --dataset_path"
TRAIN = "train --train_activations S --test_activations S --output_dir o"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("extract", "Missing option '--model'. (see probesweep extract --help)"),
        ("extract --modle x", "No such option"),
        ("extarct", "No such command 'extarct'"),
        (f"{EXTRACT} none.parquet", "does not exist"),
        (f"{EXTRACT} D --label_column z", "it has question"),
        (f"{EXTRACT} D --label_column gaps", "2 null or non-numeric values, the first in row 0"),
        (f"{EXTRACT} E", "has no rows"),
        (f"{EXTRACT} D --layers 9", "layers 0 to 3"),
        (f"{EXTRACT} D --max_length 20", "row 4 with"),
        (f"{EXTRACT} D --max_length 20", "--truncate"),
        (f"{EXTRACT} D --max_length 5 --truncate", "11 prompts cannot be cut to --max_length 5"),
        ("extract --model M --output_path o --dataset_path D --truncate", "without --use_chat_template"),
        (f"{EXTRACT} D --chat_template_kwargs x", "JSON"),
        ("extract --model N --output_path o --dataset_path D", "give --eoi_tokens N"),
        ("extract --model M --output_path o --dataset_path D", "add --use_chat_template"),
        ("train --train_activations no.zarr --test_activations S --output_dir o", "no such store"),
        (f"{TRAIN} --k_fold --n_folds 99", "99"),
        (f"{TRAIN} --alphas 1;2", "commas"),
        (f"{TRAIN} --k_fold --groups success_rate", "no label besides the groups (--groups); extract it"),
        (f"{TRAIN} --alphas 1,2", "--k_fold"),
        (f"{TRAIN} --alpha -1", "alpha"),
        ("train --train_activations S --test_activations S --output_dir U", "cannot write to"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(command, message, stores, tiny_model, tmp_path):
    frame = pd.DataFrame({"question": QUESTIONS, "success_rate": 0.5, "gaps": [None, 1.0, None] + [1.0] * 8})
    frame.to_parquet(tmp_path / "D")
    frame.iloc[:0].to_parquet(tmp_path / "E")
    if " N " in command:
        save_model(tmp_path / "N", "gpt2", tokenizer=train_tokenizer(None))
    places = {name: tmp_path / name for name in "NDEo"} | {"M": tiny_model("llama"), "S": stores / "train.zarr"}
    places["U"] = places["D"] / "below a file"
    done = run(*(places.get(word, word) for word in command.split()))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_a_full_disk_is_one_line_and_exit_1(stores, tmp_path, monkeypatch):
    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    assert run("export", stores / "train.zarr", tmp_path / "a.pt").returncode == 0
    monkeypatch.setattr(os, "fsync", no_space)
    done = run("import", tmp_path / "a.pt", tmp_path / "a.zarr")
    assert done.returncode == 1
    assert done.stderr.endswith("No space left on device\n")
    assert done.stderr.startswith(f"error: {tmp_path.parent}")
    assert not (tmp_path / "a.zarr").exists()


def test_unfinished_store_is_refused(stores, tmp_path):
    shutil.copytree(stores / "train.zarr", tmp_path / "train.zarr")
    for name in ("finished", "0"):
        (tmp_path / "train.zarr/activations/journal" / name).unlink()
    shutil.copytree(stores / "test.zarr", tmp_path / "test.zarr")
    done = train(tmp_path, tmp_path / "out")
    assert done.returncode == 2
    assert "0 of 44 samples are committed; run the same extract again" in done.stderr


def test_interrupt_exits_130_and_resumes(tiny_model, dataset, tmp_path):
    command = [
        "extract", "--model", tiny_model("llama"), "--dataset_path", dataset, "--output_path", tmp_path / "s.zarr",
        "--use_chat_template", "--shard_samples", 2, "--batch_size", 1,
    ]  # fmt: skip
    # The ninth forward pass never ends, so that the signal meets a run that is under way. A shell's background jobs
    # ignore SIGINT, and what they start inherits that.
    slow = "import itertools, signal, time; from activation_store.capture.hidden_states import HiddenStates as H\n"
    slow += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    slow += "start, passes = H.start, itertools.count()\n"
    slow += "H.start = lambda *a, **k: (next(passes) < 8 or time.sleep(600), start(*a, **k))[1]\n"
    slow += "from probesweep.commands.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *map(str, command)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    while not (tmp_path / "s.zarr/activations/journal/1").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(2)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "run the same command again" in errors
    committed = ActivationStore.open(tmp_path / "s.zarr").n_committed
    assert 0 < committed < len(QUESTIONS)
    assert run(*command).returncode == 0
    assert ActivationStore.open(tmp_path / "s.zarr").n_committed == len(QUESTIONS)


def test_dry_run_writes_nothing_and_extract_tells_what_the_store_is_like(tiny_model, dataset, tmp_path):
    frame = pd.read_parquet(dataset)
    pd.concat([frame, frame[:2]]).to_parquet(dataset)
    command = [
        "extract", "--model", tiny_model("llama"), "--dataset_path", dataset, "--output_path", tmp_path / "s.zarr",
        "--use_chat_template", "--no_prefix_cache",
    ]  # fmt: skip
    dry = run(*command, "--dry_run")
    assert dry.returncode == 0, dry.stderr
    assert dry.stdout.startswith("rows         13\n")
    assert "token at each position" in dry.stdout
    assert not (tmp_path / "s.zarr").exists()
    for done in (run(*command), run(*command)):
        assert done.returncode == 0, done.stderr
        assert "nothing can be learned there: layer 0 at -5, -4, -3, -2, -1" in done.stdout
        assert "samples that repeat the prompt of an earlier one: 2" in done.stdout
    assert "health\n  constant over all samples" in run("inspect", tmp_path / "s.zarr").stdout


def test_python_api_does_the_same(stores):
    from gpu_probes import sweep

    train_store, test_store = (ActivationStore.open(stores / f"{name}.zarr") for name in ("train", "test"))
    result = sweep(
        train_store, train_store.labels["success_rate"], test_store, test_store.labels["success_rate"], k_fold=True
    )
    assert result.best is not None
    assert torch.isfinite(torch.tensor(result.best.cv_score))


def test_command_lines_of_the_original_scripts_run_as_they_are(stores, tiny_model, tmp_path):
    for name in ("train", "test"):
        done = run(
            "extract", "--model", tiny_model("llama"), "--dataset_path", stores / f"{name}.parquet", "--output_path",
            tmp_path / f"{name}.pt", "--label_column", "success_rate", "--question_column", "question", "--layers",
            "0,1,3", "--batch_size", "32", "--use_chat_template",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        content = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        store = ActivationStore.open(tmp_path / f"{name}.zarr")
        assert tuple(content["activations"].shape) == store.shape
        np.testing.assert_array_equal(content["activations"][:, 1, -1].numpy(), store.cell(1, -1))
    done = run(
        "train", "--train_activations", tmp_path / "train.pt", "--test_activations", tmp_path / "test.pt",
        "--output_dir", tmp_path / "out", "--task_type", "auto", "--alpha", "1.0", "--k_fold", "--n_folds", "5",
        "--seed", "42",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "unknown, the training and test rows are of a .pt, which holds no prompts" in done.stdout
    assert re.search(r"^position -1: layer \d", done.stdout, re.MULTILINE)
    groups = json.loads((tmp_path / "out/inference.json").read_text())["groups"]
    assert groups["n_repeated_prompts"] is groups["n_repeated_but_for_case_and_whitespace"] is None
    train(stores, tmp_path / "from_zarr", "--k_fold")
    ours, theirs = (
        json.loads((tmp_path / folder / "performance.json").read_text())["layer_performance"]
        for folder in ("from_zarr", "out")
    )
    # The .pt has the labels in float32, which leaves their order, and with it Spearman, nearly as it was.
    for split in ("train", "test", "cv"):
        found, expected = (np.array(scores[split], dtype=float) for scores in (theirs, ours))
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_hub_id(tiny_model, dataset, tmp_path, monkeypatch):
    """A model as the hub's cache holds it, found by its id without a network."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--some--model"
    shutil.copytree(tiny_model("llama"), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    command = [
        "extract", "--model", "some/model", "--dataset_path", dataset, "--output_path", tmp_path / "s.zarr",
        "--use_chat_template", "--layers", "-1",
    ]  # fmt: skip
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    done = run(*command)
    assert done.returncode == 0, done.stderr
    store = ActivationStore.open(tmp_path / "s.zarr")
    assert store.fingerprint["weights"] == f"hub commit {commit}"
    assert store.layers == (3,)


def test_another_label_or_model_is_refused(stores, tmp_path):
    done = run(
        "train", "--train_activations", stores / "train.zarr", "--test_activations", stores / "test_right.zarr",
        "--output_dir", tmp_path / "o",
    )  # fmt: skip
    assert done.returncode == 2
    assert "test_right.zarr has no label 'success_rate'; it holds right. Join it from a file" in done.stderr


def test_several_labels_get_a_folder_each_and_weights_are_no_label(stores, tiny_model, tmp_path):
    for split in ("train", "test"):
        table = pd.read_parquet(stores / f"{split}.parquet")
        table["weight"] = np.arange(len(table)) % 3
        table.to_parquet(tmp_path / f"{split}.parquet")
        done = run(
            "extract", "--model", tiny_model("llama"), "--dataset_path", tmp_path / f"{split}.parquet", "--output_path",
            tmp_path / f"{split}.zarr", "--use_chat_template", "--layers", "1", "--label_column", "success_rate",
            "--label_column", "right", "--label_column", "weight",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    done = train(tmp_path, tmp_path / "out", "--k_fold", "--weight_column", "weight", "--alphas", "auto")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["right", "success_rate"]
    assert "success_rate: 1 layers x" in done.stdout
    assert "right: 1 layers x" in done.stdout
    metrics = {label: performance(tmp_path / "out" / label)["metric"] for label in ("success_rate", "right")}
    assert metrics == {"success_rate": "spearman", "right": "roc_auc"}
    assert len(performance(tmp_path / "out/right")["alpha_grid"]) >= 6
    before = tree(tmp_path / "out")
    assert train(tmp_path, tmp_path / "out", "--k_fold", "--weight_column", "weight", "--alphas", "auto").stdout
    assert tree(tmp_path / "out") == before
    one = train(tmp_path, tmp_path / "one", "--label_column", "right", "--fit_intercept", "--standardize")
    assert one.returncode == 0, one.stderr
    assert performance(tmp_path / "one")["standardize"] is True


def test_other_values_under_the_same_name_train_again(stores, tmp_path):
    run("export", stores / "train.zarr", tmp_path / "a.pt")
    scores = []
    for _ in range(2):
        content = torch.load(tmp_path / "a.pt", weights_only=True)
        content["activations"] = content["activations"] ** 2 if len(scores) else content["activations"]
        torch.save(content, tmp_path / "a.pt")
        shutil.rmtree(tmp_path / "train.zarr", ignore_errors=True)
        assert run("import", tmp_path / "a.pt", tmp_path / "train.zarr").returncode == 0
        shutil.copytree(tmp_path / "train.zarr", tmp_path / "test.zarr", dirs_exist_ok=True)
        scores.append(train(tmp_path, tmp_path / "out", "--k_fold").stdout)
    assert scores[0] != scores[1]


def test_verify(stores, tmp_path):
    shutil.copytree(stores / "train.zarr", tmp_path / "s.zarr")
    done = run("verify", tmp_path / "s.zarr")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 's.zarr'}: all 44 samples are complete and undamaged\n")
    (tmp_path / "s.zarr/activations/c/0/0/0/0").unlink()
    done = run("verify", tmp_path / "s.zarr")
    assert done.returncode == 1
    assert "rows 0-43" in done.stdout


def test_export_and_import(stores, tmp_path):
    assert run("export", stores / "train.zarr", tmp_path / "a.pt").returncode == 0
    done = run("import", tmp_path / "a.pt", tmp_path / "a.zarr")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(
        ActivationStore.open(tmp_path / "a.zarr")[:], ActivationStore.open(stores / "train.zarr")[:]
    )
    assert run("import", tmp_path / "a.pt", tmp_path / "a.zarr").returncode == 0
    done = run("import", tmp_path / "a.pt", stores / "train.zarr")
    assert done.returncode == 2
    assert "was started from other inputs" in done.stderr


def test_inspect(stores):
    done = run("inspect", stores / "train.zarr")
    assert done.returncode == 0, done.stderr
    for part in ("44 samples, 3 layers, 5 positions, 32 features", "44 of 44", "layer 3", "'<|im_end|>'"):
        assert part in done.stdout


def test_repair(stores, tiny_model, tmp_path):
    command = [
        "extract", "--model", tiny_model("llama"), "--dataset-path", stores / "train.parquet",
        "--output_path", tmp_path / "s.zarr", "--use_chat_template", "--layers", "0,1,3", "--repair",
    ]  # fmt: skip
    done = run(*command)
    assert done.returncode == 2
    assert "there is no store to repair" in done.stderr
    shutil.copytree(stores / "train.zarr", tmp_path / "s.zarr")
    (tmp_path / "s.zarr/activations/c/0/0/0/0").write_bytes(b"cut short")
    done = run("train", "--train_activations", tmp_path / "s.zarr", "--test_activations", stores / "test.zarr",
               "--output_dir", tmp_path / "o")  # fmt: skip
    assert done.returncode == 1
    assert "rows 0-43" in done.stderr
    assert "--repair" in done.stderr
    assert run(*command).returncode == 0
    assert run("verify", tmp_path / "s.zarr").returncode == 0
    assert tree(tmp_path / "s.zarr") == tree(stores / "train.zarr")


def test_a_wrong_option_leaves_the_finished_result_as_it_is(stores, tmp_path):
    output = tmp_path / "out"
    assert train(stores, output, "--k_fold").returncode == 0
    before = tree(output)
    for options, message in (
        (("--k_fold", "--alphas", "1,-1"), "--alphas holds -1.0, which is not a penalty"),
        (("--k_fold", "--seed", "-1"), "seed -1 is not a valid NumPy seed"),
        (("--k_fold", "--budget_gib", "0"), "--budget_gib"),
        (("--k_fold", "--alphas", "1,10", "--budget_gib", "0.00001"), "one cell needs"),
    ):
        done = train(stores, output, *options)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    assert tree(output) == before


def test_a_pt_has_one_label_and_no_weights(stores, tmp_path):
    paths = {split: tmp_path / f"{split}.pt" for split in ("train", "test")}
    for split, path in paths.items():
        assert run("export", stores / f"{split}.zarr", path).returncode == 0
    given = ["train", "--train_activations", paths["train"], "--test_activations", paths["test"]]
    for options in (("--label_column", "a", "--label_column", "b"), ("--weight_column", "w")):
        done = run(*given, "--output_dir", tmp_path / "out", *options)
        assert done.returncode == 2
        assert "has one label without a name" in done.stderr
