"""Wrong command lines, files and experiments: each gives exit 2 and one line that says what to do instead."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.commands import run
from tests.helpers.models import CHATML, QUESTIONS, save_model, train_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model) -> Path:
    """A folder of data, models, stores and results, good and bad."""
    place = tmp_path_factory.mktemp("mistakes")
    shutil.copytree(tiny_model("llama"), place / "model")
    save_model(place / "other", "qwen2")
    save_model(place / "bare", "gpt2", tokenizer=train_tokenizer(None))
    grown = train_tokenizer(CHATML.replace("assistant\n", "assistant\n<think>"))
    grown.add_tokens([*map("<{}>".format, range(400)), "<think>"])
    save_model(place / "grown", "llama", tokenizer=grown)
    shutil.copytree(place / "model", place / "adapted")
    (place / "adapted/adapter_config.json").write_text("{}")
    shutil.copytree(place / "model", place / "part")
    weights = load_file(place / "part/model.safetensors")
    kept = {name: value for name, value in weights.items() if ".layers.1." not in name}
    save_file(kept, place / "part/model.safetensors", {"format": "pt"})
    rng = np.random.default_rng(0)
    good = pd.DataFrame({"question": [f"{q} ({k})" for k in range(3) for q in QUESTIONS]})
    good["success_rate"], good["right"] = rng.random(len(good)), np.arange(len(good)) % 2
    good["text"], good["number"] = "a", 1.5
    good["gaps"] = [None, *[1.0] * (len(good) - 1)]
    good.to_parquet(place / "d.parquet")
    good.assign(question=good["question"] + "!").to_parquet(place / "e.parquet")
    good.iloc[:0].to_parquet(place / "empty.parquet")
    (place / "torn.parquet").write_bytes((place / "d.parquet").read_bytes()[:500])
    (place / "notes.txt").write_text("no dataset")
    (place / "bad.jsonl").write_text('{"question": "a", "success_rate": 1}\n{"question": "b",\n')
    (place / "semicolons.csv").write_text("question;success_rate\nHi;0.5\n")
    (place / "commas.csv").write_text("question;success_rate\nHi;0,5\n")
    (place / "wide.csv").write_text("question,success_rate\nHi,0.5\n", encoding="utf-16")
    (place / "backslash.csv").write_text('question,success_rate\n"say \\"hi\\"",0.5\n')
    (place / "mixed.jsonl").write_text('{"question": "a", "o": 1, "g": 1}\n{"question": "b", "o": "x", "g": "1"}\n')
    (place / "pretty.json").write_text('{\n "question": "a",\n "success_rate": 1\n}\n')
    (place / "hex.csv").write_text("question,success_rate\na,0x10\nb,1\n")
    (place / "truth.csv").write_text("question,success_rate\na,1\nb,true\n")
    (place / "folder.csv").mkdir()
    (place / "folder.pt").mkdir()
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    (place / "chat.jsonl").write_text(json.dumps({"question": messages, "success_rate": 1}) + "\n")
    (place / "splits").mkdir()
    (place / "splits/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    (place / "pickled.pt").write_bytes(b"\x80\x04}.")
    torch.save({"activations": torch.zeros(2, 1, 1, 3)}, place / "partial.pt")
    for name, model, data, layers in (
        ("a", "model", "d", "0,1,3"),
        ("b", "model", "e", "0,1,3"),
        ("few", "model", "e", "1"),
        ("o", "other", "e", "0,1,3"),
    ):
        options = [
            "--use_chat_template",
            "--label_column",
            "success_rate",
            "--label_column",
            "right",
            "--layers",
            layers,
        ]
        output = ("--output_path", place / f"{name}.zarr")
        done = run("extract", "--model", place / model, "--dataset_path", place / f"{data}.parquet", *output, *options)
        assert done.returncode == 0, done.stderr
    train = ("train", "--train_activations", place / "a.zarr", "--test_activations", place / "b.zarr")
    label = ("--label_column", "success_rate")
    assert run(*train, *label, "--output_dir", place / "results", "--k_fold").returncode == 0
    assert run(*train, *label, "--output_dir", place / "unchosen").returncode == 0
    # Results that were edited or cut off since.
    for name, file, content in (
        ("cut_run", "run.json", "{"),
        ("other_run", "run.json", "[]"),
        ("other_inference", "inference.json", '{"a": 1}'),
        ("cut_predictions", "all_predictions.json", "{"),
        ("cut_best", "best_probe_predictions.json", "{"),
        ("cut_card", "probe.json", '{"format_version": 1}'),
    ):
        shutil.copytree(place / "results", place / name)
        (place / name / file).write_text(content)
    return place


EXTRACT = "extract --model model --output_path new --use_chat_template --dataset_path"
TRAIN = "train --train_activations a.zarr --test_activations b.zarr --output_dir new --label_column success_rate"
DRY = "extract --model model --use_chat_template --dataset_path d.parquet --dry_run --output_path"
COMMANDS = [
    # The command itself.
    ("extarct", "'extract'"),
    ("extract", "Missing option '--model'"),
    ("extract --modle model", "--model"),
    ("train --train_activations a.zarr --output_dir new", "use --k_fold, or give --test_activations"),
    ("completion tcsh", "'bash', 'zsh', 'fish'"),
    (f"{TRAIN} --task_type numbers", "'regression', 'classification'"),
    (f"{TRAIN} --n_folds five", "not a valid integer"),
    # Datasets.
    (f"{EXTRACT} none.parquet", "give a parquet, .csv or .jsonl file"),
    (f"{EXTRACT} notes.txt", "give a parquet, .csv or .jsonl file"),
    (f"{EXTRACT} torn.parquet", "cannot be read as parquet"),
    (f"{EXTRACT} bad.jsonl", "line 2 is not JSON"),
    (f"{EXTRACT} semicolons.csv", "columns are separated by commas"),
    (f"{EXTRACT} commas.csv", "columns are separated by commas"),
    (f"{EXTRACT} wide.csv", "is UTF-16; save it as UTF-8"),
    (f"{EXTRACT} backslash.csv", "within quotes a quote is written twice"),
    (f"{EXTRACT} mixed.jsonl --label_column o", "make them numbers"),
    (f"{EXTRACT} splits", "give one of them: splits/train, splits/test"),
    (f"{EXTRACT} empty.parquet", "has no rows"),
    (f"{EXTRACT} d.parquet --label_column rate", "it has question, success_rate, right"),
    (f"{EXTRACT} d.parquet --question_column prompt", "it has question, success_rate, right"),
    (f"{EXTRACT} d.parquet --question_column number", "values that are not text, the first in row 0"),
    (f"{EXTRACT} d.parquet --label_column gaps", "drop those rows or make them numbers"),
    (f"{EXTRACT} chat.jsonl", "cut the conversation there"),
    (f"{EXTRACT} d.parquet --max_samples 0", "must be at least 1"),
    (f"{EXTRACT} d.parquet --label_column \udce9", "'\\udce9', which contains bytes that are not valid text"),
    (f"{EXTRACT} d.parquet --group_column \udce9", "'\\udce9', which contains bytes that are not valid text"),
    (f"{EXTRACT} \udce9.parquet", "'\\udce9.parquet' contains bytes that are not valid text; rename it"),
    (f"{EXTRACT} ./-", "/- does not exist"),
    # Places that only a dry run would take.
    (f"{DRY} splits", "exists and is not a store"),
    (f"{DRY} d.parquet/new", "d.parquet is a file"),
    (f"{DRY} folder.pt", "folder.pt is a folder"),
    (f"{DRY} new --repair", "leave out --repair"),
    # Models and prompts.
    ("extract --model no/such --dataset_path d.parquet --output_path new", "cannot load the configuration of model"),
    ("extract --model ./no/such/folder --dataset_path d.parquet --output_path new", "cannot load the configuration"),
    ("extract --model none.gguf --dataset_path d.parquet --output_path new", "give a hub id, a folder or a GGUF file"),
    ("extract --model bare --dataset_path d.parquet --output_path new", "give --eoi_tokens N"),
    ("extract --model model --dataset_path d.parquet --output_path new", "add --use_chat_template"),
    ("extract --model model --dataset_path d.parquet --output_path new --truncate", "without --use_chat_template"),
    ("extract --model part --dataset_path d.parquet --output_path new --use_chat_template", "lacks 9 weights"),
    ("extract --model adapted --dataset_path d.parquet --output_path new --use_chat_template", "merge it"),
    ("extract --model grown --dataset_path d.parquet --output_path new --use_chat_template", "beyond the model's 400"),
    (
        "extract --model grown --dataset_path d.parquet --output_path new --use_chat_template --dry_run",
        "'<think>' is beyond the model's 400 embeddings",
    ),
    (f"{EXTRACT} d.parquet --eoi_tokens 0", "must be at least 1"),
    (f"{EXTRACT} none.parquet --eoi_tokens 0", "must be at least 1"),
    (f"{EXTRACT} none.parquet --dtype float99", "float32"),
    (f"{EXTRACT} none.parquet --layers 3-1", "write all, -1, 0,1,2 or 0-8"),
    (f"{EXTRACT} none.parquet --max_samples 99999999999999999999", "less than 2 ** 63"),
    (f"""{EXTRACT} d.parquet --chat_template_kwargs {{"share":NaN}}""", "share is nan"),
    (f"""{EXTRACT} d.parquet --chat_template_kwargs {{"a":{{"b":[-Infinity]}}}}""", "a.b is -inf"),
    ("extract --model= --dataset_path d.parquet --output_path new", "no file or folder can have this name"),
    ("extract --model model --use_chat_template --dataset_path d.parquet --output_path d.parquet/new.pt", "d.parquet"),
    ("extract --model model --use_chat_template --dataset_path d.parquet --output_path folder.pt", "is a folder"),
    (f"{EXTRACT} d.parquet --max_length 20", "add --truncate"),
    (f"{EXTRACT} d.parquet --max_length 99999", "the model takes 256 tokens at most"),
    (f"{EXTRACT} d.parquet --chat_template_kwargs thinking", """write it as '{"key": value}'"""),
    (f"""{EXTRACT} d.parquet --chat_template_kwargs {{"tokenize":false}}""", "pass only the template's own variables"),
    (f"{EXTRACT} d.parquet --layers 9", "this model has layers 0 to 3"),
    (f"{EXTRACT} d.parquet --layers first", "write all, -1, 0,1,2 or 0-8"),
    (f"{EXTRACT} d.parquet --device gpu", "try --device cpu"),
    (f"{EXTRACT} d.parquet --device meta", "try --device cpu"),
    (f"{EXTRACT} d.parquet --device mps", "try --device cpu"),
    (f"{EXTRACT} d.parquet --batch_size 1180591620717411303424", "less than 2 ** 63"),
    (f"{EXTRACT} d.parquet --device cpu --device_map auto", "leave out --device cpu"),
    (f"{EXTRACT} d.parquet --dtype float99", "float32"),
    (f"{EXTRACT} d.parquet --batch_size 0", "must be at least 1"),
    (f"{EXTRACT} d.parquet --repair", "leave out --repair"),
    ("extract --model model --use_chat_template --dataset_path d.parquet --output_path d.parquet", "d.parquet"),
    ("extract --model model --use_chat_template --dataset_path e.parquet --output_path a.zarr", "dataset"),
    # Trainings.
    ("train --train_activations none.zarr --test_activations b.zarr --output_dir new", "no such store"),
    ("train --train_activations results --test_activations b.zarr --output_dir new", "results"),
    ("train --train_activations pickled.pt --test_activations b.zarr --output_dir new", "cannot be read as a .pt"),
    ("train --train_activations partial.pt --test_activations b.zarr --output_dir new", "lacks labels"),
    ("train --train_activations a.zarr --test_activations o.zarr --output_dir new", "extract both with the same model"),
    ("train --train_activations a.zarr --test_activations few.zarr --output_dir new", "the same --layers"),
    (f"{TRAIN} --label_column rate", "extract it with --label_column rate, or choose another"),
    (f"{TRAIN} --k_fold --n_folds 1", "folds"),
    (f"{TRAIN} --k_fold --n_folds 99", "99"),
    (f"{TRAIN} --k_fold --alphas 1;2", "write numbers with commas between"),
    (f"{TRAIN} --alphas 1,2", "--k_fold"),
    (f"{TRAIN} --alpha -1", "alpha"),
    (f"{TRAIN} --k_fold --seed -1", "seed"),
    (f"{TRAIN} --k_fold --groups topic", "extract it with --group_column topic"),
    (f"{TRAIN} --k_fold --join top", "use layers, mean, or LAYER@POSITION"),
    (f"{TRAIN} --k_fold --join 2@-1", "layers: 0+1+3"),
    (f"{TRAIN} --permutations 10", "use --k_fold"),
    (f"{TRAIN} --k_fold --permutations -5", "use 0 or more"),
    (f"{TRAIN} --k_fold --probe mass_mean --alphas 1,2", "leave out --alphas"),
    (f"{TRAIN} --device tpu", "device"),
    (f"{TRAIN} --device mps", "use one that is: cpu"),
    (f"{TRAIN} --device cuda:7", "use one that is: cpu"),
    (f"{TRAIN} --device cuda:07", "use auto, cpu, cuda, cuda:1 or mps"),
    (f"{TRAIN} --alpha 5 --alphas 1,2 --k_fold", "leave out one of them"),
    (f"{TRAIN} --alphas 1,2 --alpha_grid 3 --k_fold", "--alphas and --alpha_grid are one option"),
    (f"{TRAIN} --alphas 1,2 --alpha-grid=3 --k_fold", "--alphas and --alpha_grid are one option"),
    (f"{TRAIN} --alpha 5 --probe mass_mean", "mass_mean has no penalty; leave out --alpha"),
    (f"{TRAIN} --weight_column success_rate", "it can be only one of them"),
    (f"{TRAIN} --k_fold --join 1@-1,1@-1", "give each once"),
    (f"{TRAIN} --budget_gib 0", "--budget_gib"),
    (f"{TRAIN} --budget_gib nan", "--budget_gib"),
    (f"{TRAIN} --budget_gib inf", "--budget_gib"),
    (f"{TRAIN} --k_fold --budget_gib 1e-7", "the budget is 107 bytes; allow more with --budget_gib"),
    # What only looks like an argument.
    ("train --train_activations seed=1 --test_activations b.zarr --output_dir new", "seed=1: no such store"),
    ("train --train_activations a/seed=1 --test_activations b.zarr --output_dir new", "a/seed=1: no such store"),
    (f"{TRAIN} --seed -5", "seed -5"),
    (f"{TRAIN} --n_folds 1", "n_folds 1"),
    (f"{TRAIN} --device cuda:²", "use auto, cpu, cuda, cuda:1 or mps"),
    (f"{TRAIN} --weight_column=", "--weight_column '' is empty"),
    (f"{TRAIN} --groups=", "--groups '' is empty"),
    (f"{TRAIN} --k_fold --alphas 1,inf", "use a finite number"),
    (f"{TRAIN} --k_fold --alphas=", "write numbers with commas between"),
    # Of the arguments alone, before a store is opened.
    ("train --train_activations none.zarr --test_activations b.zarr --output_dir new --alpha nan", "alpha nan"),
    ("train --train_activations none.zarr --test_activations b.zarr --output_dir new --seed -1", "seed -1"),
    (f"{TRAIN} --track excel", "'wandb', 'mlflow', 'tensorboard'"),
    ("train --train_activations a.zarr --test_activations a.zarr --output_dir new --drop_overlap", "give other"),
    (
        "train --train_activations a.zarr --test_activations b.zarr --output_dir d.parquet/new",
        "give another --output_dir",
    ),
    (
        "train --train_activations a.zarr --test_activations b.zarr --output_dir a.zarr",
        "a.zarr is a store, which holds nothing else",
    ),
    # Results that were edited or cut off.
    ("report cut_run", "remove it and run the same training again"),
    ("report other_run", "remove it and run the same training again"),
    ("report other_inference", "inference.json does not match run.json next to it"),
    ("transfer cut_run b.zarr", "remove it and run the same training again"),
    ("transfer cut_best b.zarr", "best_probe_predictions.json does not match run.json next to it"),
    ("predict --probe cut_card --text Hi", "probe.json does not match run.json next to it"),
    ("push cut_predictions me/probes", "all_predictions.json does not match run.json next to it"),
    (
        "train --train_activations a.zarr --test_activations b.zarr --output_dir cut_run --label_column success_rate",
        "remove it and run the same training again",
    ),
    # What comes after.
    ("report a.zarr", "give an --output_dir of a training"),
    ("transfer unchosen none.zarr", "no such store"),
    ("transfer a.zarr b.zarr", "give an --output_dir of a training"),
    ("transfer results o.zarr", "the probes were trained on another model"),
    ("transfer results b.zarr --output_path d.parquet/new.json", "cannot write to d.parquet"),
    ("transfer results b.zarr --label_column rate", "it holds success_rate, right"),
    ("predict --probe results", "give --dataset_path and --output_path, or --text"),
    ("predict --probe results --dataset_path d.parquet", "give --dataset_path and --output_path, or --text"),
    (
        "predict --probe results --dataset_path d.parquet --output_path new.xlsx",
        ".parquet, .csv, .jsonl; use one of these",
    ),
    ("predict --probe results --dataset_path none.csv --output_path new.csv", "give a parquet, .csv or .jsonl file"),
    (
        "predict --probe results --dataset_path d.parquet --output_path d.parquet",
        "is an input, and would be overwritten",
    ),
    (f"predict --probe results --dataset_path {'x' * 300}.csv --output_path new.csv", "File name too long"),
    (f"predict --probe {'x' * 300} --text Hi", "File name too long"),
    (f"transfer results {'x' * 300}", "File name too long"),
    (f"inspect {'x' * 300}", "File name too long"),
    (f"{EXTRACT} {'x' * 300}.csv", "255 bytes at most"),
    ("predict --probe results --dataset_path pretty.json --output_path new.csv", "one JSON object over several lines"),
    (f"{EXTRACT} hex.csv", "('0x10'); drop those rows or make them numbers"),
    (f"{EXTRACT} truth.csv", "make all of them numbers"),
    ("predict --probe results --dataset_path mixed.jsonl --output_path new.parquet", "write .jsonl"),
    ("predict --probe results --dataset_path backslash.csv --output_path new.csv", "a quote is written twice"),
    ("predict --probe results --dataset_path d.parquet --output_path folder.csv", "give the name of a file"),
    ("predict --probe results --dataset_path d.parquet --output_path e.parquet/new.csv", "cannot write to e.parquet"),
    ("predict --probe results --text Hi --question_column text", "leave them out with --text"),
    ("predict --probe results --text Hi --max_samples 1", "leave them out with --text"),
    ("predict --probe results --dataset_path ./- --output_path new.csv", "/- does not exist"),
    ("predict --probe \udce9 --text Hi", "contains bytes that are not valid text"),
    ("transfer \udce9 b.zarr", "contains bytes that are not valid text"),
    ("transfer results \udce9", "contains bytes that are not valid text"),
    ("report \udce9", "contains bytes that are not valid text"),
    ("inspect \udce9", "contains bytes that are not valid text"),
    ("import \udce9.pt new", "contains bytes that are not valid text"),
    ("export a.zarr new\udce9.pt", "contains bytes that are not valid text"),
    ("run \udce9.toml", "contains bytes that are not valid text"),
    (f"{TRAIN} --device \udce9", "use auto, cpu, cuda, cuda:1 or mps"),
    ("predict --probe results --text Hi --model other", "give the same model with --model"),
    ("predict --probe unchosen --text Hi", "without --k_fold"),
    ("predict --probe results --text Hi --batch_size 1180591620717411303424", "less than 2 ** 63"),
    ("predict --probe results --text Hi --device meta", "try --device cpu"),
    (
        "predict --probe results --dataset a --dataset_path b --output_path c",
        "--dataset_path and --dataset are one option",
    ),
    ("predict --probe a.zarr --text Hi", "give an --output_dir of a training"),
    ("verify none.zarr", "no such store"),
    ("inspect results", "results"),
    ("export none.zarr new.pt", "no such store"),
    ("export a.zarr d.parquet/new.pt", "cannot write to d.parquet"),
    ("export a.zarr folder.csv", "give the name of a file"),
    ("import none.pt new", "no such file"),
    ("import d.parquet new", "cannot be read as a .pt"),
    ("run none.toml", "probesweep run --init"),
    ("run d.parquet", "not UTF-8"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "way_out"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_a_mistake_is_one_line_with_the_way_out(command, way_out, place, monkeypatch):
    monkeypatch.chdir(place)
    done = run(*command.split())
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert way_out in done.stderr
    assert done.stdout == ""
    assert not list(Path().glob("new*"))
