"""Extraction as a whole: layers, resuming, data types, refusals."""

import os

import numpy as np
import pandas as pd
import pytest
import torch

from activation_store import (
    ActivationStore,
    FingerprintMismatchError,
    InputError,
    NonFiniteError,
    StoreLockedError,
    capture,
    extract,
)
from activation_store.capture import HiddenStates
from activation_store.extract import parse_layers
from activation_store.journal import WriterLock
from tests.activation_store.test_store import tree
from tests.conftest import CHATML, N_BLOCKS, save_model, train_tokenizer


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", tuple(range(31))),
        ("-1", (30,)),
        ("0,1,2", (0, 1, 2)),
        ("2, 0, 2", (0, 2)),
        ("0-3", (0, 1, 2, 3)),
        ("0-2,30", (0, 1, 2, 30)),
        ("-31", (0,)),
        ([5, -2], (5, 29)),
    ],
)
def test_layer_specifications(layers, expected):
    assert parse_layers(layers, 30) == expected


@pytest.mark.parametrize("layers", ["31", "-32", "0-31", "3-1", "a", "1,", "", "1.5", "all,1", "--1"])
def test_unknown_layers_are_refused(layers):
    with pytest.raises(InputError, match="--layers"):
        parse_layers(layers, 30)


def run(folder, dataset, path, **options):
    return extract(
        str(folder), dataset, path, use_chat_template=True, batch_size=3, shard_samples=4, device="cpu", **options
    )


def test_interrupted_extraction_resumes_byte_identical(tiny_model, dataset, tmp_path, monkeypatch):
    folder = tiny_model("llama")
    run(folder, dataset, tmp_path / "whole.zarr")
    forward, calls = HiddenStates.run, []

    def interrupted(self, prompts, positions):
        calls.append(len(prompts))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return forward(self, prompts, positions)

    monkeypatch.setattr(HiddenStates, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(folder, dataset, tmp_path / "cut.zarr")
    monkeypatch.setattr(HiddenStates, "run", forward)
    assert 0 < ActivationStore.open(tmp_path / "cut.zarr").n_committed < 11
    run(folder, dataset, tmp_path / "cut.zarr")
    assert tree(tmp_path / "cut.zarr") == tree(tmp_path / "whole.zarr")


def test_a_second_writer_is_refused_at_once(tiny_model, dataset, tmp_path, monkeypatch):
    run(tiny_model("llama"), dataset, tmp_path / "s.zarr")
    monkeypatch.setattr(capture, "load_tokenizer", None)
    lock = WriterLock.acquire(tmp_path / "s.zarr/activations/writer.lock")
    with pytest.raises(StoreLockedError, match=f"is being written by process {os.getpid()}"):
        run(tiny_model("llama"), dataset, tmp_path / "s.zarr")
    lock.release()


def test_a_finished_store_needs_no_weights(tiny_model, dataset, tmp_path, monkeypatch):
    folder = tiny_model("llama")
    before = run(folder, dataset, tmp_path / "s.zarr")
    monkeypatch.setattr(HiddenStates, "load", None)
    assert run(folder, dataset, tmp_path / "s.zarr").shape == before.shape


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"layers": "0"}, "layers"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"eoi_tokens": 2}, "positions"),
        ({"max_samples": 5}, "dataset"),
    ],
)
def test_changed_inputs_are_refused(options, field, tiny_model, dataset, tmp_path):
    folder = tiny_model("llama")
    run(folder, dataset, tmp_path / "s.zarr")
    with pytest.raises(FingerprintMismatchError, match=f"{field}: .* in the store, .* now"):
        run(folder, dataset, tmp_path / "s.zarr", **options)


def test_a_changed_dataset_template_or_tokenizer_is_refused(dataset, tmp_path):
    folder = save_model(tmp_path / "model", "llama")
    run(folder, dataset, tmp_path / "s.zarr")
    frame = pd.read_parquet(dataset)
    changes = {
        "order": frame.iloc[::-1],
        "question": frame.assign(question=[*frame.question[:-1], "another"]),
        "label": frame.assign(success_rate=frame.success_rate / 2),
    }
    for name, changed in changes.items():
        changed.to_parquet(tmp_path / f"{name}.parquet")
        with pytest.raises(FingerprintMismatchError, match=r"dataset: '[0-9a-f]{12}\.\.\.' in the store"):
            run(folder, tmp_path / f"{name}.parquet", tmp_path / "s.zarr")
    frame.iloc[:4].to_parquet(tmp_path / "short.parquet")
    with pytest.raises(FingerprintMismatchError, match="n_samples: 11 in the store, 4 now"):
        run(folder, tmp_path / "short.parquet", tmp_path / "s.zarr")
    frame.assign(other=frame.success_rate).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(FingerprintMismatchError, match=r"label_columns: \['success_rate'\] in the store, \['other'\]"):
        run(folder, tmp_path / "other.parquet", tmp_path / "s.zarr", label_column="other")
    with pytest.raises(FingerprintMismatchError, match=r"chat_template_kwargs: \{\} in the store, \{'enable"):
        run(folder, dataset, tmp_path / "s.zarr", chat_template_kwargs={"enable_thinking": False})
    train_tokenizer(CHATML.replace("system", "System") + " ").save_pretrained(folder)
    with pytest.raises(FingerprintMismatchError, match="chat_template: "):
        run(folder, dataset, tmp_path / "s.zarr")
    train_tokenizer(bos=True).save_pretrained(folder)
    with pytest.raises(FingerprintMismatchError, match="tokenizer: "):
        run(folder, dataset, tmp_path / "s.zarr")
    train_tokenizer().save_pretrained(folder)
    assert run(folder, dataset, tmp_path / "s.zarr").n_committed == 11


def test_changed_weights_are_refused(dataset, tmp_path):
    folder = save_model(tmp_path / "model", "llama")
    run(folder, dataset, tmp_path / "s.zarr")
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(FingerprintMismatchError, match="weights: "):
        run(folder, dataset, tmp_path / "s.zarr")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stores_what_the_model_computes_without_loss(dtype, dataset, tmp_path):
    folder = save_model(tmp_path / "model", "llama", dtype=getattr(torch, dtype))
    auto = run(folder, dataset, tmp_path / "auto.zarr")
    assert auto.dtype.name == dtype
    wide = run(folder, dataset, tmp_path / "wide.zarr", dtype="float32")
    assert wide.dtype == np.float32
    for layer in auto.layers:
        found, expected = auto.cell(layer, -1).astype(np.float64), wide.cell(layer, -1).astype(np.float64)
        rms = np.sqrt(np.square(expected).mean())
        assert 0 < np.abs(found - expected).max() < 0.2 * rms or layer == 0


def test_non_finite_values_stop_with_rows_and_layer(dataset, tmp_path):
    folder = save_model(tmp_path / "model", "llama")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(torch.inf)
    model.save_pretrained(folder)
    with pytest.raises(NonFiniteError, match=r"NaN or infinity for rows \[.*\], first at layer 2, in float32"):
        run(folder, dataset, tmp_path / "s.zarr")
    assert ActivationStore.open(tmp_path / "s.zarr").n_committed == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "--batch_size 0: must be at least 1"),
        ({"layers": "9"}, f"has layers 0 to {N_BLOCKS}"),
        ({"dtype": "int8"}, "dtype 'int8' cannot be stored"),
        ({"device": "cuda:7"}, "device 'cuda:7' cannot be used"),
        ({"label_column": "name"}, "label column 'name' .* has 11 null or non-numeric"),
        ({"max_length": 10}, "longer than --max_length 10"),
        ({"max_samples": 0}, "--max_samples 0"),
        ({"max_length": 0}, "--max_length 0"),
    ],
)
def test_bad_arguments_are_refused_before_weights_are_loaded(
    options, message, tiny_model, dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(HiddenStates, "load", None)
    with pytest.raises(InputError, match=message):
        extract(str(tiny_model("llama")), dataset, tmp_path / "s.zarr", **{"use_chat_template": True, **options})
    assert not (tmp_path / "s.zarr").exists()


def test_unknown_model_is_one_line(dataset, tmp_path):
    with pytest.raises(InputError, match="model 'no/such-model'") as caught:
        extract("no/such-model", dataset, tmp_path / "s.zarr", use_chat_template=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="does not exist"):
        extract("nothing.gguf", dataset, tmp_path / "s.zarr", use_chat_template=True)
